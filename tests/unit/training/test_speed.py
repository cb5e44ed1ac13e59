"""What makes a step quicker leaves its numbers alone, and no step waits for its device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import build_classifier, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.batches import Batch
from stages.training.micro_batches import Passes
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import Step, classify_step, contrastive_step, distill_step
from stages.training.teachers import answers_to_the_same_view

N_IMAGES = 8
CPU = torch.device("cpu")

# Operations whose result the host must have: it would stand still until a GPU is done.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal"}


class NothingWaits(TorchDispatchMode):
    """Raises where a value, or a shape that depends on values, would leave the device."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and any(
            isinstance(part, torch.Tensor) and part.dtype == torch.bool
            for arg in args
            for part in (arg if isinstance(arg, list | tuple) else [arg])
        )
        if name in WAITS or masked:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs or {})


def a_batch(step: int = 0, *, some_unlabelled: bool = False) -> Batch:
    random = torch.Generator().manual_seed(step)
    views_VBCHW = torch.rand(2, N_IMAGES, 1, 16, 16, generator=random)
    first = -1 if some_unlabelled else 0
    return Batch(views_VBCHW, np.arange(N_IMAGES), torch.arange(N_IMAGES) % 3 + first)


def a_state(
    kind: str, runtime: Runtime, optimizer: Any = "sgd", *, fused: bool = False
) -> tuple[TrainState, Step]:
    """What a method trains, and its step; `kind` is a memory, "classify" or "distill"."""
    torch.manual_seed(0)
    simclr = build_simclr(build_encoder(10, 0.0625, stem="small_stride2", in_channels=1), out_dim=8)
    classifier = build_classifier(simclr, from_layer=1, n_classes=3)
    model = runtime.place(classifier if kind in {"classify", "distill"} else simclr).train()
    beside: dict[str, Any] = {}
    if kind in {"simclr", "moco"}:
        queue = NegativeQueue(40, 8, random_start=kind == "moco")
        beside = {"momentum_encoder": MomentumEncoder(model, 0.9), "queue": queue}
    rate = 0.001
    state = TrainState(
        model, build_optimizer(optimizer, model, rate, 1e-4, fused=fused), beside=beside
    )
    if kind == "classify":
        return state, classify_step(runtime, head_decay=1e-4)
    if kind == "distill":
        teacher = runtime.place(build_classifier(simclr, from_layer=0, n_classes=3))
        return state, distill_step(runtime, answers_to_the_same_view(teacher, runtime), 1.0, 0.5)
    passes = Passes(4) if kind == "in passes" else None
    memory = kind if beside else "none"
    return state, contrastive_step(runtime, 0.2, "float32", memory, passes=passes)


@pytest.mark.parametrize("kind", ["none", "in passes", "simclr", "moco", "classify", "distill"])
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_no_step_waits_for_its_device(kind: str, optimizer: str):
    fused = optimizer == "adamw"  # as on a GPU; torch's plain one asks for its step count on a CPU
    state, step = a_state(kind, Runtime(CPU), optimizer, fused=fused)
    batch = a_batch(some_unlabelled=kind == "distill")
    for _ in range(2):  # a queue that is empty, and one that is not
        with NothingWaits():
            step(state, batch)


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any()), torch.nonzero]
)
def test_what_would_wait_is_seen(wait: Callable[[torch.Tensor], Any]):
    x = torch.arange(3)
    with NothingWaits(), pytest.raises(AssertionError, match="waits for the device"):
        wait(x)


def losses(runtime: Runtime, kind: str, steps: int, optimizer: Any = "sgd") -> list[float]:
    state, step = a_state(kind, runtime, optimizer, fused=runtime.fused_optimizer)
    with runtime.compiled(state.model, *state.beside.values()):
        return [float(step(state, a_batch(number))["loss"]) for number in range(steps)]


@pytest.mark.parametrize(
    ("faster", "optimizer"),
    [({"channels_last": False}, "sgd"), ({"fused_optimizer": True}, "adamw")],
)
def test_layout_and_fused_optimizer_change_nothing_beyond_rounding(
    faster: dict[str, Any], optimizer: str
):
    plain = losses(Runtime(CPU), "simclr", 4, optimizer)
    quick = losses(Runtime(CPU, **faster), "simclr", 4, optimizer)
    assert quick == pytest.approx(plain, rel=1e-4)


def test_the_layout_is_that_of_images_and_weights():
    for channels_last in (True, False):
        runtime = Runtime(CPU, channels_last=channels_last)
        images_BCHW = runtime.arrange(torch.rand(2, 3, 4, 4))
        weight = runtime.place(torch.nn.Conv2d(3, 5, 3)).weight
        for tensor in (images_BCHW, weight):
            assert tensor.is_contiguous(memory_format=torch.channels_last) is channels_last


@pytest.mark.slow  # a minute of compiling each
@pytest.mark.parametrize("kind", ["none", "in passes", "classify"])
def test_compiled_steps_change_nothing_beyond_rounding(kind: str):
    plain = losses(Runtime(CPU), kind, 3)
    compiled = losses(Runtime(CPU, compile_mode="default"), kind, 3)
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, (True, None, False)),  # of a CPU
        ({"channels_last": False, "fused_optimizer": True}, (False, None, True)),
        ({"compile_mode": "reduce-overhead"}, (True, "reduce-overhead", False)),
        ({"compile_mode": "none"}, (True, None, False)),
    ],
)
def test_auto_is_what_was_measured(asked: dict[str, Any], found: tuple[Any, ...]):
    runtime = Runtime.start("cpu", 1, **asked)
    assert (runtime.channels_last, runtime.compile_mode, runtime.fused_optimizer) == found
