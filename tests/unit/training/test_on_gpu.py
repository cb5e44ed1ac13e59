"""What only a GPU can show: bfloat16, compiled steps, views made beside training, what fits."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.data.store import ImageStore
from stages.data.views import ViewRecipe
from stages.models.batch_norm import normalise_rows_together
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import SimCLR, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.batches import Batch, ViewLoader
from stages.training.fitting import FILE, fit_batch
from stages.training.micro_batches import Passes
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import Step, contrastive_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
GPU = torch.device("cuda")
N_IMAGES = 32
GPU_CHECKS = Path(__file__).parents[2] / "benchmarks" / "gpu_checks.py"


def network() -> SimCLR:
    torch.manual_seed(0)
    return build_simclr(build_encoder(18, 0.5, stem="small"), out_dim=32).train()


def learner(
    runtime: Runtime,
    precision: str = "float32",
    memory: str = "none",
    passes: Passes | None = None,
    optimizer: Any = "lars",
) -> tuple[TrainState, Step]:
    model = runtime.place(network())
    if passes and passes.statistics_over:
        normalise_rows_together(model, 2 * passes.statistics_over)
    beside: dict[str, Any] = {}
    if memory != "none":
        queue = NegativeQueue(64, 32, random_start=memory == "moco").to(GPU)
        beside = {"momentum_encoder": MomentumEncoder(model, 0.9), "queue": queue}
    fused = runtime.fused_optimizer
    state = TrainState(
        model, build_optimizer(optimizer, model, 1e-3, 1e-4, fused=fused), beside=beside
    )
    return state, contrastive_step(runtime, 0.2, precision, memory, passes=passes)


def batch_of(step: int) -> Batch:
    random = torch.Generator().manual_seed(step)
    return Batch(torch.rand(2, N_IMAGES, 3, 32, 32, generator=random), np.arange(N_IMAGES))


def losses(runtime: Runtime, **options: Any) -> list[float]:
    state, step = learner(runtime, **options)
    with runtime.compiled(state.model, *state.beside.values()):
        return [float(step(state, batch_of(number))["loss"]) for number in range(3)]


def test_bfloat16_learns_nearly_what_float32_does():
    found, expected = losses(Runtime(GPU), precision="bfloat16"), losses(Runtime(GPU))
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("options", [{}, {"memory": "simclr"}, {"passes": Passes(16, 16)}])
def test_compiled_steps_change_nothing_beyond_rounding(mode: str, options: dict[str, Any]):
    compiled = losses(Runtime(GPU, compile_mode=mode), **options)
    assert compiled == pytest.approx(losses(Runtime(GPU), **options), rel=1e-3)


@pytest.mark.parametrize("passes", [None, Passes(8, 8)])
@pytest.mark.parametrize("memory", ["none", "simclr", "moco"])
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_no_step_waits_for_the_gpu(passes: Passes | None, memory: str, optimizer: str):
    runtime = Runtime(GPU, fused_optimizer=True)
    state, step = learner(runtime, "bfloat16", memory, passes, optimizer)
    step(state, batch_of(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(state, batch_of(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_holds_before_anything_is_measured_holds():
    spec = importlib.util.spec_from_file_location("gpu_checks", GPU_CHECKS)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    state, step = learner(Runtime(GPU))
    step(state, batch_of(0))
    for check in program.checks(GPU, lambda: step(state, batch_of(1))):
        assert check["holds"], check


@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_a_loader_on_the_gpu_gives_the_views_of_one_on_the_cpu(
    tmp_path: Path, make_noise_shards: Callable[..., Path], n_threads: int
):
    shards = make_noise_shards(tmp_path, per_class=40, side=36)
    store = ImageStore.open(shards, "train", with_labels=False, channels=1, max_pixels=10_000)
    options: dict[str, Any] = {"batch_size": 8, "n_views": 2, "seed": 0}
    on_cpu = ViewLoader(store, ViewRecipe.official(32), **options)
    on_gpu = ViewLoader(store, ViewRecipe.official(32), **options, device=GPU, n_threads=n_threads)
    for one, other in zip(on_cpu.batches(0, 12), on_gpu.batches(0, 12), strict=True):
        assert other.views_VBCHW.device.type == "cuda"
        assert one.positions_B.tolist() == other.positions_B.tolist()
        torch.testing.assert_close(other.views_VBCHW.cpu(), one.views_VBCHW, rtol=0, atol=1e-5)


def test_as_many_images_go_through_at_once_as_fit(tmp_path: Path):
    """Memory for this process is cut until the whole batch does not fit, and some of it does."""
    model = Runtime(GPU).place(build_simclr(build_encoder(50, stem="small"), out_dim=32)).train()
    normalise_rows_together(model, 2 * 8)
    views = torch.rand(2, 64, 3, 64, 64)
    arguments = (model, views, 8, "none", Runtime(GPU), "float32", tmp_path)
    assert fit_batch(*arguments).images == 64  # type: ignore[arg-type]
    assert (tmp_path / FILE).exists()
    needed = torch.cuda.max_memory_reserved()
    (tmp_path / FILE).unlink()
    torch.cuda.set_per_process_memory_fraction(0.6 * needed / torch.cuda.mem_get_info()[1])
    try:
        found = fit_batch(*arguments)  # type: ignore[arg-type]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.images in {8, 16, 32}
    assert fit_batch(*arguments) == found  # type: ignore[arg-type]  # as it was noted
    assert all(parameter.grad is None for parameter in model.parameters())
