"""Images in: from their source to WebDataset shards and an index, split and checked."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.data.build import Wanted, build_shards
from stages.data.publish import take_published
from stages.data.reading import read_source
from stages.data.remote import Remote
from stages.data.splits import SplitSizes
from stages.errors import run_stage
from stages.params import load_params
from stages.records import write_record
from stages.sections.data import DataParams
from stages.sections.runtime import RuntimeParams

SHARDS, WORKDIR = Path("data/shards"), Path("runs/shard")


def main() -> None:
    everything = load_params()
    params, runtime = everything.data, everything.runtime
    begun = time.perf_counter()
    with _Progress() as progress:
        if params.source == "published":
            content = take_published(Remote(str(params.shards_at)), SHARDS)
        else:
            content = build_shards(
                read_source(as_workers_see(params, runtime)),
                wanted_of(params),
                SHARDS,
                WORKDIR,
                runtime.shard_workers or cores(),
                progress.tell,
                scheduler=runtime.dask_scheduler,
                remote=None if params.shards_at is None else Remote(params.shards_at),
            )
    details = details_of(content) | {"shards_taken_over": progress.taken_over}
    write_record("shard", numbers_of(content, time.perf_counter() - begun), details)


def as_workers_see(params: DataParams, runtime: RuntimeParams) -> DataParams:
    """The same source, by paths that hold in the folders of a cluster's workers."""
    if runtime.dask_scheduler is None:
        return params
    there = {"unlabelled": [str(Path(folder).absolute()) for folder in params.unlabelled]}
    if params.root is not None and "://" not in params.root:
        return params.model_copy(update={**there, "root": str(Path(params.root).absolute())})
    return params.model_copy(update=there)


def wanted_of(params: DataParams) -> Wanted:
    return Wanted(
        sizes=SplitSizes(
            validation_images=params.validation_images,
            test_fraction=params.test_fraction,
            train_limit=params.train_limit,
            test_limit=params.test_limit,
        ),
        seed=params.seed,
        channels=params.channels,
        max_pixels=params.max_pixels,
        images_per_shard=params.images_per_shard,
        quarantine_tolerance=params.quarantine_tolerance,
        drop_near_duplicates=params.near_duplicates == "drop",
    )


def numbers_of(content: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What `dvc metrics` shows of an index."""
    splits, alike = content["splits"], content.get("near_duplicates", [])
    shards = [shard for split in splits.values() for shard in split["shards"]]
    return {
        "images": {name: split["images"] for name, split in splits.items()},
        "classes": len(content["class_names"]),
        "labelled": sum(split["labelled"] for split in splits.values()),
        "shards": len(shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "quarantined": len(content["quarantine"]),
        "duplicates": sum(len(group["keys"]) - 1 for group in content["duplicates"]),
        "duplicates_dropped": sum(len(group.get("dropped", [])) for group in content["duplicates"]),
        "near_duplicates": sum(len(group["keys"]) - 1 for group in alike),
        "near_duplicates_across_splits": sum(len(group["sides"]) > 1 for group in alike),
        "near_duplicates_dropped": sum(len(group.get("dropped", [])) for group in alike),
        "seconds": round(seconds, 2),
    }


def details_of(content: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the numbers: all of the index but the list of shards."""
    splits = {
        name: {key: value for key, value in split.items() if key not in {"shards", "members"}}
        for name, split in content["splits"].items()
    }
    return {**content, "splits": splits}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Progress:
    """A bar on a terminal, a line per phase elsewhere."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.phase = ""
        self.taken_over = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def tell(self, phase: str, done: int, total: int) -> None:
        if phase == "shards taken over":
            self.taken_over = done
            if done:
                print(f"shard: {done} of {total} {phase}", flush=True)
            return
        if phase != self.phase:
            self.__exit__()
            self.phase = phase
            self.bar = tqdm(desc=f"shard: {phase}", total=total, disable=not sys.stderr.isatty())
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        if done == total and not sys.stderr.isatty():
            print(f"shard: {done} {phase}", flush=True)


if __name__ == "__main__":
    run_stage(main)
