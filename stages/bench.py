"""Where the time of pretraining goes on this machine: behind `python -m pipeline bench`.

Images per second of the loader alone, of the network alone, and of both as they train together,
for the params as they are, on the shards that are there. Nothing is written.

    python -m stages.bench [--seconds 10] [--batch-size N] [--json]
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass

import torch

from stages.errors import UserError, run_stage
from stages.params import Params, load_params
from stages.training.batches import ViewLoader
from stages.training.pretraining import build_state, load_views, open_store, passes_of, step_of
from stages.training.recipes import architecture_of, start_runtime
from stages.training.runtime import Runtime

ROUNDS = 3  # of the three, in turn, so that a busy machine slows all alike
WARM_UP = 3  # steps that are not counted: compiling, memory, batches that were waiting
TOLERATED_WAIT = 0.05  # share of the time; below, the network is what there is to speed up


@dataclass(frozen=True)
class Measured:
    """Rates of one process.

    Attributes:
        device: that the network runs on.
        batch_size: images of a step of this process.
        threads: CPU threads of torch and of the loader.
        cores: that this process may use.
        loader_images_per_second: alone.
        compute_images_per_second: the network alone, on a batch that is there.
        images_per_second: both together, as in training.
        waited_share: of that time, for which the network stood still.
        loader_core_seconds: of the processor, for an image.
    """

    device: str
    batch_size: int
    threads: int
    cores: int
    loader_images_per_second: float
    compute_images_per_second: float
    images_per_second: float
    waited_share: float
    loader_core_seconds: float

    @property
    def cores_to_keep_up(self) -> int:
        """What the loader needs to give as much as the network alone can take."""
        return max(math.ceil(self.compute_images_per_second * self.loader_core_seconds), 1)

    @property
    def bottleneck(self) -> str:
        if self.device == "cpu":  # both want the same cores, and neither need ever wait
            seconds = 1 / self.compute_images_per_second
            return "loader" if 1 / self.loader_images_per_second > seconds else "compute"
        return "loader" if self.waited_share > TOLERATED_WAIT else "compute"

    @property
    def advice(self) -> str:
        if self.device == "cpu":
            share = self.compute_images_per_second / (
                self.compute_images_per_second + self.loader_images_per_second
            )
            return (
                f"Loader and network share the cores; the loader takes {share:.0%} of the work. "
                f"runtime.threads is best at 0 (all {self.cores})."
            )
        keep_up = f"To keep up with the network the loader needs {_cores(self.cores_to_keep_up)}"
        if self.bottleneck == "compute":
            return f"{keep_up}, and has them. Only a faster network would help."
        if self.cores_to_keep_up > self.cores:
            return (
                f"{keep_up}; this process may use {self.cores}. Leave runtime.threads at 0, and "
                "give it more cores, smaller images in the shards, or lighter views (no blur)."
            )
        return (
            f"{keep_up}; it has {self.threads} threads. Set runtime.threads to 0 (all), and raise "
            "runtime.loader_threads."
        )


@dataclass(frozen=True)
class Lap:
    """Images after the warm-up, and what they took."""

    images: int
    seconds: float
    core_seconds: float
    waited_seconds: float


def main() -> None:
    asked = parse_arguments()
    measured = measure(load_params(), asked.seconds, asked.batch_size)
    print(as_json(measured) if asked.json else as_text(measured))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stages.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the three")
    parser.add_argument("--batch-size", type=int, help="images of a step (default: as in params)")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    return parser.parse_args()


def measure(params: Params, seconds: float, batch_size: int | None = None) -> Measured:
    """Measure each of the three for about so many seconds.

    Raises:
        UserError: no shards, or a batch that can't be.
    """
    runtime = start_runtime(params)
    if batch_size is None:
        batch_size = params.pretrain.batch_size // params.runtime.world_size
    if batch_size < 2:
        raise UserError(f"a batch of {batch_size} can't be measured: it takes two images or more.")
    loader = load_views(params, open_store(params), runtime, batch_size)
    pretrain, recompute = params.pretrain, params.runtime.recompute
    state = build_state(pretrain, architecture_of(params), loader.batch_size, runtime, recompute)
    train_step = step_of(pretrain, runtime, passes_of(params, state, loader, runtime, None))

    batch = loader.batch(0)
    batches = loader.batches(0, sys.maxsize)
    works: dict[str, Callable[[int], object]] = {
        "loader": loader.batch,
        "compute": lambda _: train_step(state, batch),
        "both": lambda _: train_step(state, next(batches)),
    }
    laps: dict[str, list[Lap]] = {name: [] for name in works}
    with closing(batches):  # ends the thread that makes them
        for _ in range(ROUNDS):
            for name, work in works.items():
                laps[name].append(lap(work, loader, runtime, seconds / ROUNDS))

    def median(name: str, fact: Callable[[Lap], float]) -> float:
        return statistics.median(fact(one) for one in laps[name])

    return Measured(
        device=runtime.device.type,
        batch_size=loader.batch_size,
        threads=torch.get_num_threads(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        loader_images_per_second=median("loader", lambda one: one.images / one.seconds),
        compute_images_per_second=median("compute", lambda one: one.images / one.seconds),
        images_per_second=median("both", lambda one: one.images / one.seconds),
        waited_share=median("both", lambda one: one.waited_seconds / one.seconds),
        loader_core_seconds=median("loader", lambda one: one.core_seconds / one.images),
    )


def lap(work: Callable[[int], object], loader: ViewLoader, runtime: Runtime, seconds: float) -> Lap:
    """Do the work of step after step for about so long."""
    for step in range(WARM_UP):
        work(step)
    finish(runtime)
    begun, core_begun = time.perf_counter(), time.process_time()
    waited = loader.waited.seconds
    step = WARM_UP
    while step == WARM_UP or time.perf_counter() < begun + seconds:
        work(step)
        step += 1
    finish(runtime)
    return Lap(
        images=(step - WARM_UP) * loader.batch_size,
        seconds=time.perf_counter() - begun,
        core_seconds=time.process_time() - core_begun,
        waited_seconds=loader.waited.seconds - waited,
    )


def finish(runtime: Runtime) -> None:
    """A GPU is told what to do long before it has done it."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()


def as_json(measured: Measured) -> str:
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in asdict(measured).items()
    }
    concluded = ("cores_to_keep_up", "bottleneck", "advice")
    return json.dumps(rounded | {name: getattr(measured, name) for name in concluded})


def as_text(measured: Measured) -> str:
    rates = {
        "loader alone": measured.loader_images_per_second,
        "compute alone": measured.compute_images_per_second,
        "both": measured.images_per_second,
    }
    return "\n".join(
        [
            f"Pretraining on {measured.device}, {measured.batch_size} images a step, "
            f"{measured.threads} threads of {_cores(measured.cores)}:",
            *(f"  {name:<14}{rate:>12,.1f} images/s" for name, rate in rates.items()),
            f"  waited for data {measured.waited_share:.1%} of the time",
            f"Bottleneck: {measured.bottleneck}. {measured.advice}",
        ]
    )


def _cores(n: int) -> str:
    return "1 core" if n == 1 else f"{n} cores"


if __name__ == "__main__":
    run_stage(main)
