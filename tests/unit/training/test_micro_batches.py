"""A batch in passes learns what the whole batch learns."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from stages.models.batch_norm import BatchNorm, normalise_rows_together, use_global_batch_norm
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.resnet import Recompute
from stages.models.simclr import SimCLR, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.batches import Batch
from stages.training.micro_batches import Passes
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import contrastive_step

CPU = Runtime(torch.device("cpu"))
N_IMAGES, TOGETHER, STEPS = 24, 4, 3
WHOLE = Passes()


def network() -> SimCLR:
    """With branches that let gradients through from the first step on."""
    torch.manual_seed(0)
    model = build_simclr(build_encoder(10, 0.0625, stem="small_stride2", in_channels=1), out_dim=8)
    for part in model.modules():
        if isinstance(part, BatchNorm):
            part.weight.data.fill_(0.7)
    return model.train()


def views_of(step: int) -> Tensor:
    return torch.rand(2, N_IMAGES, 1, 16, 16, generator=torch.Generator().manual_seed(step))


def learn(
    passes: Passes,
    memory: str = "none",
    *,
    frozen: bool = False,
    recompute: Recompute = "none",
    runtime: Runtime = CPU,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Losses, and all that a run leaves: weights, moving statistics, momentum encoder, queue."""
    model = network()
    model.encoder.recompute = recompute
    beside: dict[str, Any] = {}
    if memory != "none":
        beside["momentum_encoder"] = MomentumEncoder(model, 0.9)
        beside["queue"] = NegativeQueue(60, 8, random_start=memory == "moco")
    for module in (model, *beside.values()):
        if passes.statistics_over:
            normalise_rows_together(module, 2 * passes.statistics_over)
        elif runtime.world_size > 1:
            use_global_batch_norm(module, dist.group.WORLD)
    if frozen:
        model.eval()
    state = TrainState(model, build_optimizer("sgd", model, 0.01, 1e-4), beside=beside)
    step = contrastive_step(runtime, 0.2, "float32", memory, passes=passes)
    mine, losses = runtime.rows(N_IMAGES), []
    for number in range(steps):
        batch = Batch(views_of(number)[:, mine], np.arange(N_IMAGES)[mine])
        losses.append(step(state, batch)["loss"])
    saved = state.state_dict()
    return {"losses": torch.stack(losses), "model": saved["model"], "beside": saved["beside"]}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """To rounding: sums in another order, some steps through batch norms of a few values."""
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("memory", ["none", "simclr", "moco"])
def test_passes_of_any_size_learn_what_the_whole_batch_does(memory: str):
    expected = learn(Passes(None, TOGETHER), memory)
    for images in (TOGETHER, 2 * TOGETHER, 3 * TOGETHER):
        assert_same(learn(Passes(images, TOGETHER), memory), expected)


def test_with_frozen_batch_norm_passes_learn_what_the_plain_step_does():
    assert_same(learn(Passes(6), frozen=True), learn(WHOLE, frozen=True))


def test_the_comparison_would_see_what_batch_norm_is_over():
    whole, in_parts = learn(WHOLE, steps=1), learn(Passes(None, TOGETHER), steps=1)
    assert abs(whole["losses"][0] - in_parts["losses"][0]) > 1e-3


def test_moving_statistics_follow_the_mean_over_the_parts():
    norm, in_parts = BatchNorm(3), BatchNorm(3)
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    norm(x)
    normalise_rows_together(in_parts, 2)
    y = in_parts(x)
    torch.testing.assert_close(in_parts.running_mean, norm.running_mean)
    variances = torch.stack([part.var(dim=(0, 2, 3), correction=0) for part in x.split(2)])
    torch.testing.assert_close(in_parts.running_var, 0.9 + 0.1 * variances.mean(dim=0))
    torch.testing.assert_close(y, torch.cat([BatchNorm(3)(part) for part in x.split(2)]))


@pytest.mark.parametrize(("images", "together"), [(5, None), (8, 3), (4, 8)])
def test_passes_that_would_be_unequal_or_split_a_batch_norm_are_refused(images: int, together: Any):
    with pytest.raises(ValueError, match="passes of"):
        Passes(images, together).sizes(N_IMAGES)


@pytest.mark.parametrize("recompute", ["groups", "blocks"])
@pytest.mark.parametrize("passes", [WHOLE, Passes(2 * TOGETHER, TOGETHER)])
def test_recomputing_changes_no_bit(recompute: Recompute, passes: Passes):
    found = learn(passes, "simclr", recompute=recompute)
    torch.testing.assert_close(found, learn(passes, "simclr"), rtol=0, atol=0)


def peak_bytes(passes: Passes, recompute: Recompute = "none") -> int:
    """Most memory that a step of a thin ResNet-50 takes at once, beyond what stays."""
    torch.manual_seed(0)
    model = build_simclr(build_encoder(50, 0.0625, stem="small"), out_dim=8).train()
    if passes.statistics_over:
        normalise_rows_together(model, 2 * passes.statistics_over)
    model.encoder.recompute = recompute
    state = TrainState(model, build_optimizer("sgd", model, 0.01, 1e-4))
    step = contrastive_step(CPU, 0.2, "float32", "none", passes=passes)
    batch = Batch(torch.rand(2, N_IMAGES, 3, 32, 32), np.arange(N_IMAGES))
    step(state, batch)  # makes what stays
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        step(state, batch)
    assert measured.profiler is not None
    events = measured.profiler.kineto_results.events()
    return int(np.cumsum([e.nbytes() for e in events if e.name() == "[memory]"]).max())


def test_less_is_kept_the_more_is_recomputed_and_the_smaller_the_passes():
    whole, in_groups = peak_bytes(WHOLE), peak_bytes(WHOLE, "groups")
    in_blocks, in_passes = peak_bytes(WHOLE, "blocks"), peak_bytes(Passes(TOGETHER, TOGETHER))
    assert in_groups < 0.6 * whole  # 0.51
    assert in_blocks < 0.4 * whole  # 0.32
    assert in_passes < 0.25 * whole  # 0.17


def worker(rank: int, cases: list[tuple[Passes, str, Recompute]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    runtime = Runtime(torch.device("cpu"), rank, 2)
    learnt = [
        learn(passes, memory, recompute=recompute, runtime=runtime)
        for passes, memory, recompute in cases
    ]
    torch.save(learnt, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.equality
def test_two_processes_learn_in_passes_what_one_learns_at_once(tmp_path: Path):
    cases: list[tuple[Passes, str, Recompute]] = [
        (Passes(TOGETHER, TOGETHER), "simclr", "none"),
        (WHOLE, "simclr", "blocks"),  # global batch norm, its messages sent again backwards
    ]
    mp.spawn(worker, (cases, str(tmp_path)), nprocs=2)
    expected = [learn(Passes(None, TOGETHER), "simclr"), learn(WHOLE, "simclr")]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, copy.deepcopy(other))
