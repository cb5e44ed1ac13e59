"""One process with a whole batch, and two and four with their shares, learn the same thing.

Every number of processes is started once, forked from this one; all checks read what it left.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.data.order import EpochOrder
from stages.data.views import ViewRecipe
from stages.errors import Interrupted, UserError
from stages.losses.build import ContrastiveLoss, build_loss
from stages.losses.streaming_nt_xent import streaming_nt_xent
from stages.models.batch_norm import use_global_batch_norm
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training import sole, steps
from stages.training.batches import Batch, ViewLoader
from stages.training.gather import gather_rows
from stages.training.loop import Watched
from stages.training.runtime import Runtime
from stages.training.saving import resume_together
from stages.training.session import Session
from stages.training.sole import sole_trainer
from stages.training.state import TrainState
from stages.training.steps import Step, contrastive_step
from tests.unit.training.in_memory import InMemory

pytestmark = [
    pytest.mark.equality,
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
]

STEPS, IMAGES, WORLDS = 10, 64, (1, 2, 4)
STOPPED_AT = 6  # the run that four begin and two continue


@dataclass(frozen=True)
class Case:
    """What is trained: memory, optimizer and its learning rate, loss."""

    memory: str
    optimizer: str
    base_lr: float
    loss: str = "nt_xent"
    n_steps: int = STEPS


# Rates at which ten steps do not multiply a rounding error: LARS at 0.05, in one process whose
# first weights are moved by 1e-7, ends 4% off in its loss; at 0.005 by 1e-6.
CASES = {
    "simclr memory, LARS": Case("simclr", "lars", 0.005),
    "moco memory, AdamW": Case("moco", "adamw", 0.0002),
    "streaming, SGD": Case("none", "sgd", 0.002, "streaming", 3),
    "nt_logistic, SGD": Case("none", "sgd", 0.002, "nt_logistic", 3),
    "margin_triplet, SGD": Case("none", "sgd", 0.002, "margin_triplet", 3),
    "no memory, SGD": Case("none", "sgd", 0.002, n_steps=3),
}


def views_of(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(2, IMAGES, 1, 16, 16, generator=generator)


def loss_called(name: str) -> ContrastiveLoss:
    if name == "streaming":  # so few logits would not stream by themselves
        return partial(streaming_nt_xent, temperature=0.2)
    return build_loss(name, 0.2, semi_hard=name != "nt_xent")  # ty: ignore[invalid-argument-type]


def start(runtime: Runtime, case: Case) -> tuple[TrainState, Step]:
    torch.manual_seed(0)
    model = build_simclr(build_encoder(10, 0.0625, stem="small_stride2", in_channels=1), out_dim=8)
    beside: dict[str, nn.Module] = {}
    if case.memory != "none":
        beside["momentum_encoder"] = MomentumEncoder(model, 0.9)
        beside["queue"] = NegativeQueue(200, 8, random_start=case.memory == "moco")
    if runtime.world_size > 1:
        for module in (model, *beside.values()):
            use_global_batch_norm(module, dist.group.WORLD)
    optimizer = build_optimizer(case.optimizer, model, case.base_lr, 1e-4)  # ty: ignore[invalid-argument-type]
    step = contrastive_step(runtime, 0.2, "float32", case.memory, loss_called(case.loss))
    return TrainState(model.train(), optimizer, beside=beside), step


def learn(runtime: Runtime, case: Case) -> dict[str, Any]:
    """The losses and the state after some steps, in one of `runtime.world_size` processes."""
    state, step = start(runtime, case)
    mine, losses = runtime.rows(IMAGES), []
    for number in range(case.n_steps):
        batch = Batch(views_of(number)[:, mine], torch.arange(IMAGES)[mine].numpy())
        losses.append(step(state, batch)["loss"].clone())
    kept = state.state_dict()
    return {"losses": torch.stack(losses), "model": kept["model"], "beside": kept["beside"]}


def gradient_of_z(runtime: Runtime, gather: Callable[[Tensor, Runtime], Tensor]) -> Tensor:
    """Of the loss over all images, with respect to the projections of this process's."""
    generator = torch.Generator().manual_seed(0)
    z_VBP = torch.randn(2, IMAGES, 8, generator=generator)
    mine_VBP = z_VBP[:, runtime.rows(IMAGES)].clone().requires_grad_()
    z0_BP, z1_BP = (gather(z_BP, runtime) for z_BP in mine_VBP)
    loss = loss_called("nt_xent")(z0_BP, z1_BP, rows=runtime.rows(len(z0_BP)))
    loss.backward()
    assert mine_VBP.grad is not None
    return mine_VBP.grad / runtime.world_size  # gradients are averaged over processes


def gather_without_gradient(rows: Tensor, runtime: Runtime) -> Tensor:
    """What torch.distributed.all_gather does: the others' rows are constants."""
    gathered = gather_rows(rows.detach(), runtime)
    mine = runtime.rows(len(gathered))
    return torch.cat([gathered[: mine.start], rows, gathered[mine.stop :]])


def gather_shuffled(rows: Tensor, runtime: Runtime) -> Tensor:
    """Everything arrives, in the wrong order in one process."""
    gathered = gather_rows(rows, runtime)
    return gathered.flip(0) if runtime.rank == 1 else gathered


def a_loader(runtime: Runtime, n_images: int, batch_size: int) -> ViewLoader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n_images, 1, 16, 16), dtype=torch.uint8, generator=generator)
    hashes = np.arange(n_images, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    store: Any = InMemory(pixels, n_images, hashes)
    rows = runtime.rows(batch_size)
    return ViewLoader(store, ViewRecipe.official(16), batch_size, n_views=2, seed=3, rows=rows)


def run_session(runtime: Runtime, folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    """A run of 12 steps over 50 images, which no batch of 8 divides; maybe told to stop."""
    state, step = start(runtime, CASES["simclr memory, LARS"])
    loader = a_loader(runtime, n_images=50, batch_size=8)

    def wrapped(state: TrainState, batch: Batch) -> Watched:
        assert batch.views_VBCHW.shape[1] == 8 // runtime.world_size  # never a short one
        last = runtime.rank == runtime.world_size - 1
        if stop_at is not None and state.step == stop_at - 1 and last:
            os.kill(os.getpid(), signal.SIGTERM)  # one is told, all stop
        return step(state, batch)

    session = Session("test", folder, "same", 12, 2, 0.005, 8, 6, 1e9, 3)
    loss = lambda watched: {"loss": float(watched["loss"])}  # noqa: E731
    with sole_trainer(folder, runtime):
        session.run(runtime, state, loader.batches, wrapped, loss, loader.waited)
    kept = state.state_dict()
    losses = torch.tensor([row["loss"] for row in state.curve])
    return {"losses": losses, "model": kept["model"], "beside": kept["beside"]}


def refused(work: Callable[[], Any]) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def everything(runtime: Runtime, folder: Path) -> dict[str, Any]:
    """All that the tests look at, from one process of a world."""
    left: dict[str, Any] = {name: learn(runtime, case) for name, case in CASES.items()}
    gathers = {
        "gradient": gather_rows,
        "gradient without gather": gather_without_gradient,
        "gradient shuffled": gather_shuffled,
    }
    left |= {name: gradient_of_z(runtime, gather) for name, gather in gathers.items()}
    if runtime.world_size == 4:
        try:
            run_session(runtime, folder / "run", stop_at=STOPPED_AT)
        except Interrupted as error:
            left["stopped"] = str(error)
    else:
        left["session"] = run_session(runtime, folder / ("run" if runtime.world_size == 2 else "x"))
    others = f"params {runtime.rank}"  # another fingerprint in every process
    state, _ = start(runtime, CASES["no memory, SGD"])
    last = folder / f"none-{runtime.world_size}/last.pt"
    left["other params"] = refused(lambda: resume_together(last, state, others, runtime))
    private = folder / f"host-{runtime.world_size}-{runtime.rank}/runs"
    left["other folder"] = refused(lambda: sole_trainer(private, runtime).__enter__())
    left["uneven batch"] = refused(lambda: a_loader(runtime, 50, 50))
    return left


def worker(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    sole.SEEN_SECONDS = 0.5  # no network file system here
    meeting = f"file://{folder}/meet-{world_size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    left = everything(Runtime(torch.device("cpu"), rank, world_size), folder)
    torch.save(left, folder / f"{world_size}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, list[dict[str, Any]]]:
    """What every process of a world of one, two and four left."""
    folder = tmp_path_factory.mktemp("worlds")
    fork = multiprocessing.get_context("fork")  # torch is imported once
    found = {}
    for size in sorted(WORLDS, reverse=True):  # two continue what four begin
        crew = [fork.Process(target=worker, args=(rank, size, folder)) for rank in range(size)]
        for process in crew:
            process.start()
        for process in crew:
            process.join(timeout=300)
        assert [process.exitcode for process in crew] == [0] * size
        paths = [folder / f"{size}-{rank}.pt" for rank in range(size)]
        found[size] = [torch.load(path, weights_only=True) for path in paths]
    return found


def assert_equal_to_rounding(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Sums in another order, ten steps through batch norms: compared tensor by tensor.

    By the norm of the difference: an optimizer that divides by a gradient's size, as AdamW, turns
    rounding in weights that have no gradient to speak of into steps of their own.
    """
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=2e-5, atol=0)
    for part in ("model", "beside"):
        ours_flat, theirs_flat = flat(ours[part]), flat(theirs[part])
        assert ours_flat.keys() == theirs_flat.keys()
        for name, tensor in theirs_flat.items():
            difference = (ours_flat[name].double() - tensor.double()).norm()
            assert difference <= 2e-4 * tensor.double().norm() + 1e-6, name


def flat(tree: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(tree, Tensor):
        return {name: tree}
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        found |= flat(value, f"{name}.{key}")
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [2, 4])
def test_processes_with_a_share_each_learn_what_one_with_the_batch_does(
    worlds: Mapping[int, list[dict[str, Any]]], case: str, size: int
):
    (alone,) = worlds[1]
    for process in worlds[size]:
        assert_equal_to_rounding(process[case], alone[case])


@pytest.mark.parametrize("size", [2, 4])
def test_the_gradient_of_a_gathered_loss_is_that_of_one_process(
    worlds: Mapping[int, list[dict[str, Any]]], size: int
):
    whole_VBP = worlds[1][0]["gradient"]
    together_VBP = torch.cat([process["gradient"] for process in worlds[size]], dim=1)
    torch.testing.assert_close(together_VBP, whole_VBP, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("broken", ["gradient without gather", "gradient shuffled"])
def test_a_broken_gather_would_be_seen(worlds: Mapping[int, list[dict[str, Any]]], broken: str):
    whole_VBP = worlds[1][0]["gradient"]
    together_VBP = torch.cat([process[broken] for process in worlds[2]], dim=1)
    assert (together_VBP - whole_VBP).norm() > 0.01 * whole_VBP.norm()  # rounding is 1e-5


def test_the_comparison_would_see_a_loss_that_forgets_the_other_processes(
    worlds: Mapping[int, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
):
    """A process of a world of two whose gather gives back its own rows."""
    monkeypatch.setattr(steps, "gather_rows", lambda rows, _: rows)
    case = CASES["no memory, SGD"]
    state, step = start(Runtime(torch.device("cpu")), case)
    half = slice(0, IMAGES // 2)
    loss = step(state, Batch(views_of(0)[:, half], np.arange(IMAGES // 2)))["loss"]
    assert abs(float(loss) - float(worlds[1][0]["no memory, SGD"]["losses"][0])) > 0.1


def test_four_processes_stop_together_and_two_continue_to_where_one_unbroken_run_ends(
    worlds: Mapping[int, list[dict[str, Any]]],
):
    for process in worlds[4]:
        assert f"after step {STOPPED_AT} of 12, and saved it" in process["stopped"]
    unbroken = worlds[1][0]["session"]
    for process in worlds[2]:
        assert_equal_to_rounding(process["session"], unbroken)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_that_would_not_train_the_same_thing_are_refused_without_a_hang(
    worlds: Mapping[int, list[dict[str, Any]]], size: int
):
    for what in ("other params", "other folder"):
        assert all(process[what] for process in worlds[size])
    assert any("has other params, data or code" in one["other params"] for one in worlds[size])
    assert any("is not the folder" in one["other folder"] for one in worlds[size])
    told = [process["uneven batch"] for process in worlds[size]]
    assert all(("can't be dealt evenly" in one) == (size == 4) for one in told)  # 50 images


def test_every_batch_of_every_process_has_its_full_share_however_many_images_there_are():
    """The images left over at an epoch's end wait for another epoch; none is ever short."""
    for n_images, batch_size in ((50, 8), (9, 8), (8, 8), (17, 16)):
        for size in WORLDS:
            rows = [
                Runtime(torch.device("cpu"), rank, size).rows(batch_size) for rank in range(size)
            ]
            order = EpochOrder(n_images, seed=3)
            for step in range(3 * (n_images // batch_size) + 1):
                _, positions = order.global_batch(step, batch_size)
                shares = [positions[one] for one in rows]
                assert {len(share) for share in shares} == {batch_size // size}
                assert np.array_equal(np.concatenate(shares), positions)
                assert len(set(positions.tolist())) == batch_size
