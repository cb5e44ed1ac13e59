"""Images by index out of shards, against ImageFolder + DataLoader and against WebDataset.

    python tests/benchmarks/bench_reading.py [--rounds 5]

One JSON line per figure; `ratio` >= `target` is good. The same JPEG pictures stand in a folder per
class and in the shards that `stages.shard` made of it. Every reader gives all of them once, decoded
to uint8, in batches; ours and the DataLoader in a shuffled order, WebDataset from start to end,
which is the least that it does. All works on one core, and seconds of the processor are compared,
of all processes, medians of runs taken in turn: what a core can feed. Our cache of decoded images
is off, and all files are in the memory of the system. WebDataset's reader is measured with its own
decoder and, without a promise, with the decoder that ours uses.

The DataLoader is measured in the process itself, which spares it the way from process to process,
and with one worker, as it must be used where a network is to train meanwhile; ours does that with
a thread. A last figure is of pictures that the store has kept: what it does by default where all
have one size and 1 GiB holds them, as it does CIFAR.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import psutil
import torch
import webdataset as wds
import yaml
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from stages.data.fast_jpeg import decode_plain_jpeg
from stages.data.store import ImageStore

BATCH = 64
MAX_PIXELS = 10**8
N_CLASSES = 4

Reader = Callable[[], int]


@dataclass(frozen=True)
class Case:
    """Pictures of one size, and how many times as fast as each peer ours should read them."""

    height: int
    width: int
    n_pictures: int
    targets: dict[str, float | None]  # None: measured, not promised

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


NO_PROMISE = {"WebDataset, our decoder": None}
CASES = (
    Case(350, 400, 256, {"ImageFolder": 2.0, "ImageFolder, a worker": 2.0, "WebDataset": None}),
    Case(32, 32, 4096, {"ImageFolder": 10.0, "ImageFolder, a worker": 10.0, "WebDataset": 5.0}),
)


def draw_folder(case: Case, folder: Path) -> None:
    rng = np.random.default_rng(case.width)
    for number in range(case.n_pictures):
        coarse = rng.integers(0, 256, (case.height // 12 + 2, case.width // 12 + 2, 3), np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((case.width, case.height), Image.Resampling.BICUBIC)
        )
        noisy = smooth + rng.normal(0, 6, smooth.shape)
        path = folder / f"class-{number % N_CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def shard(case: Case, workspace: Path) -> Path:
    """The same pictures as shards, by the stage itself."""
    params = yaml.safe_load((ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    params["data"] |= {
        "source": "folder",
        "root": str(workspace / "pictures"),
        "image_size": case.height,
        "channels": 3,
        "validation_images": N_CLASSES,
        "test_fraction": 0.05,
        "train_limit": None,
        "test_limit": None,
        "images_per_shard": 1024,
    }
    (workspace / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    command = [sys.executable, "-m", "stages.shard"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return workspace / "data" / "shards"


def our_reader(shards: Path, cache_bytes: int) -> Reader:
    options = {"with_labels": True, "channels": 3, "max_pixels": MAX_PIXELS}
    store = ImageStore.open(shards, "train", cache_bytes=cache_bytes, **options)

    def read() -> int:
        order = np.random.default_rng(0).permutation(store.n_images)
        n_read = 0
        for start in range(0, store.n_images, BATCH):
            positions_B = order[start : start + BATCH]
            images, classes = store.images(positions_B), store.class_tensor(positions_B)
            assert len(images) == len(classes)
            n_read += len(images)
        return n_read

    return read


def folder_reader(folder: Path, workers: int) -> Reader:
    pictures = ImageFolder(str(folder), transform=PILToTensor())
    loader = DataLoader(
        pictures, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: sum(len(images) for images, _ in loader)


def webdataset_reader(shards: Path, decode: Callable[[bytes], torch.Tensor] | None) -> Reader:
    tars = sorted(map(str, shards.glob("train*.tar")))

    def read() -> int:
        pictures = wds.WebDataset(tars, shardshuffle=False)
        pictures = pictures.decode(wds.handle_extension("jpg", decode) if decode else "torchrgb8")
        batches = pictures.to_tuple("jpg", "cls").batched(BATCH)
        return sum(len(images) for images, _ in batches)

    return read


def fast_decode(data: bytes) -> torch.Tensor:
    return torch.from_numpy(decode_plain_jpeg(data, 3, MAX_PIXELS)).permute(2, 0, 1)


def processor_seconds() -> float:
    """Of this process and those it started."""
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(times.user + times.system for times in children)


def seconds_of_an_image(readers: dict[str, Reader], rounds: int) -> dict[str, float]:
    """Median seconds of the processor, runs taken in turn; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds + 1):
        for name, read in readers.items():
            begun = processor_seconds()
            n_read = read()
            seconds[name].append((processor_seconds() - begun) / n_read)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def measure(case: Case, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        draw_folder(case, workspace / "pictures")
        shards = shard(case, workspace)
        readers = {
            "ours": our_reader(shards, cache_bytes=0),
            "ours, kept": our_reader(shards, cache_bytes=2**30),
            "ImageFolder": folder_reader(workspace / "pictures", 0),
            "ImageFolder, a worker": folder_reader(workspace / "pictures", 1),
            "WebDataset": webdataset_reader(shards, None),
            "WebDataset, our decoder": webdataset_reader(shards, fast_decode),
        }
        seconds = seconds_of_an_image(readers, rounds)
        del readers
    pairs = [("ours", peer, target) for peer, target in (case.targets | NO_PROMISE).items()]
    for ours, peer, target in [*pairs, ("ours, kept", "ImageFolder", None)]:
        figure = {
            "name": f"reading_{case}" + ("_kept" if ours == "ours, kept" else ""),
            "ratio": round(seconds[peer] / seconds[ours], 2),
            "target": target,
            "peer": peer,
            "ours_microseconds": round(seconds[ours] * 1e6, 1),
            "peer_microseconds": round(seconds[peer] * 1e6, 1),
            "threads": 1,
        }
        print(json.dumps(figure), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, and so one thread
    for case in CASES:
        measure(case, rounds)


if __name__ == "__main__":
    main()
