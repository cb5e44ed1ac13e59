"""One process with a whole batch and several with their shares learn the same thing."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from stages.losses.build import ContrastiveLoss, build_loss
from stages.losses.streaming_nt_xent import streaming_nt_xent
from stages.models.batch_norm import use_global_batch_norm
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.batches import Batch
from stages.training.loop import Watched
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import contrastive_step

STEPS, IMAGES = 5, 16
pytestmark = pytest.mark.equality


def views_of(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(2, IMAGES, 1, 16, 16, generator=generator)


def loss_called(name: str) -> ContrastiveLoss:
    if name == "streaming":  # so few logits would not stream by themselves
        return partial(streaming_nt_xent, temperature=0.2)
    return build_loss(name, 0.2, semi_hard=name != "nt_xent")  # ty: ignore[invalid-argument-type]


def learn(
    runtime: Runtime, memory: str, loss: str = "nt_xent"
) -> tuple[list[Watched], dict[str, Any]]:
    """The losses and the state after some steps, in one of `runtime.world_size` processes."""
    torch.manual_seed(0)
    model = build_simclr(build_encoder(10, 0.0625, stem="small_stride2", in_channels=1), out_dim=8)
    beside: dict[str, Any] = {}
    if memory != "none":
        beside["momentum_encoder"] = MomentumEncoder(model, 0.9)
        beside["queue"] = NegativeQueue(40, 8, random_start=memory == "moco")
    if runtime.world_size > 1:
        for module in (model, *beside.values()):
            use_global_batch_norm(module, dist.group.WORLD)
    state = TrainState(model.train(), build_optimizer("sgd", model, 0.002, 1e-4), beside=beside)
    step = contrastive_step(runtime, 0.2, "float32", memory, loss_called(loss))
    mine, seen = runtime.rows(IMAGES), []
    for number in range(STEPS):
        batch = Batch(views_of(number)[:, mine], torch.arange(IMAGES)[mine].numpy())
        seen.append({"loss": step(state, batch)["loss"]})
    return seen, {"model": model.state_dict(), "beside": state.state_dict()["beside"]}


def worker(rank: int, world_size: int, memory: str, loss: str, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    learnt = learn(Runtime(torch.device("cpu"), rank, world_size), memory, loss)
    torch.save(learnt, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("memory", "world_size", "loss"),
    [
        ("none", 4, "nt_xent"),
        ("simclr", 2, "nt_xent"),
        ("moco", 2, "nt_xent"),
        ("none", 2, "streaming"),
        ("none", 2, "nt_logistic"),
        ("none", 2, "margin_triplet"),
    ],
)
def test_processes_with_a_share_each_learn_what_one_with_the_batch_does(
    tmp_path: Path, memory: str, world_size: int, loss: str
):
    alone = learn(Runtime(torch.device("cpu")), memory, loss)
    mp.spawn(worker, (world_size, memory, loss, str(tmp_path)), nprocs=world_size)
    for rank in range(world_size):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-4)  # losses
        # Sums in another order, five steps through batch norms of 32 views.
        torch.testing.assert_close(together[1], alone[1], rtol=1e-3, atol=2e-5)


def test_the_comparison_would_see_a_loss_that_forgets_the_other_processes():
    losses, _ = learn(Runtime(torch.device("cpu")), "none")
    assert abs(float(losses[0]["loss"]) - first_loss_on_half()) > 0.1


def first_loss_on_half() -> float:
    """The first loss of a process that sees its own half and nothing else."""
    torch.manual_seed(0)
    model = build_simclr(build_encoder(10, 0.0625, stem="small_stride2", in_channels=1), out_dim=8)
    state = TrainState(model.train(), build_optimizer("sgd", model, 0.002, 1e-4))
    half = Batch(views_of(0)[:, : IMAGES // 2], torch.arange(IMAGES // 2).numpy())
    return float(
        contrastive_step(Runtime(torch.device("cpu")), 0.2, "float32", "none")(state, half)["loss"]
    )
