"""Pretraining by two processes on two cores against one on one, and what saving costs.

    python tests/benchmarks/bench_scaling.py [--rounds 5] [--steps 20]

Two JSON lines; `ratio` >= `target` is good. The network, the views and the batch of 256 images are
the quick profile's; each process has one core and one thread, makes the views of its share and
trains, with the loss and batch norm over both. Rounds of one and of two alternate, and medians are
compared; `load` says what else the machine was doing, which counts against two processes first.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stages.data.views import make_views
from stages.params import load_params
from stages.training import checkpoint
from stages.training.batches import Batch
from stages.training.pretraining import build_state, step_of
from stages.training.recipes import architecture_of, view_recipe
from stages.training.runtime import Runtime
from stages.training.state import TrainState

AIM = 1.6  # times as many images a second with two processes
SAVING_AIM = 0.01  # of the time, at the default interval
PARAMS = load_params(ROOT / "pipeline/profiles/quick.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("this process may use one core alone: nothing to compare", file=sys.stderr)
        return
    rates: dict[int, list[float]] = {1: [], 2: []}
    saves: list[list[float]] = []
    for _ in range(asked.rounds):
        for world_size in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(train, (world_size, cores, asked.steps, folder), nprocs=world_size)
                found = json.loads(Path(folder, "0.json").read_text())
                rates[world_size].append(found["images_per_second"])
                saves.append(found["seconds_of_saving"])
    one, two = (statistics.median(rates[n]) for n in (1, 2))
    where = {"load": round(os.getloadavg()[0], 2), "rounds": asked.rounds}
    tell(
        name="two_processes_on_two_cores",
        ratio=round(two / one, 2),
        target=AIM,
        peer="one process on one core",
        images_per_second=round(two, 1),
        peer_images_per_second=round(one, 1),
        **where,
    )
    waits, writes = (statistics.median(seconds) for seconds in zip(*saves, strict=True))
    every = PARAMS.runtime.save_every_seconds
    tell(
        name="saving",
        ratio=round(SAVING_AIM * every / (waits + writes), 2),  # the writer may take a core, too
        target=1.0,
        peer=f"{SAVING_AIM:.0%} of the time, every {every:.0f} s",
        seconds_training_waits=round(waits, 4),
        seconds_of_writing=round(writes, 4),
        **where,
    )


def train(rank: int, world_size: int, cores: list[int], steps: int, folder: str) -> None:
    """Train for some steps as rank `rank`; the first process writes what it measured."""
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    if world_size > 1:
        meeting = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    runtime = Runtime(torch.device("cpu"), rank, world_size)
    pretrain = PARAMS.pretrain
    state = build_state(pretrain, architecture_of(PARAMS), pretrain.batch_size, runtime)
    step = step_of(pretrain, runtime)
    recipe = view_recipe(pretrain.views, PARAMS.data.image_size)
    rows = runtime.rows(pretrain.batch_size)
    shape = (pretrain.batch_size, PARAMS.data.channels, *[PARAMS.data.image_size] * 2)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    hashes = np.arange(pretrain.batch_size, dtype=np.uint64)

    def one(epoch: int) -> None:
        views = make_views(images[rows], recipe, seed=0, epoch=epoch, key_hashes=hashes[rows])
        step(state, Batch(views, np.arange(pretrain.batch_size)[rows]))

    for epoch in range(3):
        one(epoch)
    begun = time.perf_counter()
    for epoch in range(steps):
        one(epoch)
    seconds = time.perf_counter() - begun
    if rank == 0:
        found = {
            "images_per_second": steps * pretrain.batch_size / seconds,
            "seconds_of_saving": seconds_of_saving(state, Path(folder, "state")),
        }
        Path(folder, "0.json").write_text(json.dumps(found))
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def seconds_of_saving(state: TrainState, folder: Path) -> tuple[float, float]:
    """Of the copy, for which training waits, and of writing it aside."""
    begun = time.perf_counter()
    copied = checkpoint.snapshot(state, "fingerprint")
    waited = time.perf_counter() - begun
    checkpoint.write(folder / "last.pt", copied)
    return waited, time.perf_counter() - begun - waited


def tell(**line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
