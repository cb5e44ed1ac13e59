"""Where a run may start, what a block shuffle costs in diversity, and what opening an index takes.

    python tests/benchmarks/bench_data.py [--images 10_000_000] [--rounds 5]

One JSON line each. `ratio` of a start is the time of torch's DistributedSampler, which draws the
whole epoch before its first index, over ours for the batch of any step; both stand before an index
of so many simulated images. `ratio` of a mixing is the number of shards a batch of 4,096 draws on,
over that of a full shuffle; it is a figure to choose data.shuffle_shards by, not a speed.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from torch.utils.data import DistributedSampler, SequentialSampler

from stages.data.block_order import BlockOrder, mixing
from stages.data.order import EpochOrder, Order

IMAGES_PER_SHARD = 5000
BATCH = 4096
SEED = 7


def main() -> None:
    arguments = parse_arguments()
    shard_N = np.arange(arguments.images, dtype=np.int32) // IMAGES_PER_SHARD
    n_steps = arguments.images // BATCH
    orders: dict[str, Callable[[], Order]] = {
        "all images": lambda: EpochOrder(arguments.images, SEED),
        "blocks of 16 shards": lambda: BlockOrder.of(shard_N, SEED, 16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*orders, "torch"]}
    for number in range(arguments.rounds):
        step = 3 * n_steps + n_steps * number // arguments.rounds  # in the fourth epoch
        for name, order in orders.items():
            seconds[name].append(taken(lambda order=order, step=step: start(order(), step)))
        seconds["torch"].append(taken(lambda: torch_start(arguments.images)))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name in orders:
        tell(
            name=f"start at any step of {arguments.images:,} images, {name}",
            ratio=round(medians["torch"] / medians[name], 1),
            target=1.0,
            peer="torch DistributedSampler",
            seconds=round(medians[name], 4),
            limit_seconds=1.0,
        )
    for block in (8, 32, 128):
        found = mixing(BlockOrder.of(shard_N, SEED, block), shard_N, BATCH)
        tell(
            name=f"mixing in blocks of {block} shards of {shard_N[-1] + 1}",
            ratio=found.of_full_shuffle,
            target=None,
            peer="full shuffle",
            shards_per_batch=found.shards_per_batch,
        )


def start(order: Order, step: int) -> None:
    epoch, positions = order.global_batch(step, BATCH)
    assert epoch == 3
    assert len(positions) == BATCH


def torch_start(n_images: int) -> None:
    everything = SequentialSampler(range(n_images))
    sampler = DistributedSampler(everything, num_replicas=1, rank=0, seed=SEED)
    sampler.set_epoch(3)
    next(iter(sampler))


def taken(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def tell(**line: object) -> None:
    print(json.dumps(line), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
