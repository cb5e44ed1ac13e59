"""Pretraining on one GPU: is it right, how fast is it, and how far from what the chip could do.

    python tests/benchmarks/bench_gpu.py            # ResNet-50, 224 pixels, 512 images, bfloat16
    python tests/benchmarks/bench_gpu.py --tiny     # the same on a CPU, small, in seconds

Needs this project's `stages` and torch, no prefect and no dvc; torchvision for the peer. First the
checks, then images a second: compute alone (views that are there) as written and compiled, in
passes and with recomputation, with views made on the device, end to end from JPEG shards; beside
them torchvision's ResNet-50 with a plain SimCLR. A JSON line each (`ratio` >= `target` is good),
then a table in Markdown to keep. Exit code 1 where a check fails.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import gpu_checks
import numpy as np
import torch
from gpu_roofline import roofline
from PIL import Image

from stages.data.build import Wanted, build_shards
from stages.data.folders import read_class_folders
from stages.data.gpu_jpeg import GpuDecoder
from stages.data.on_device import to_device
from stages.data.random_numbers import key_hashes
from stages.data.splits import SplitSizes
from stages.data.store import ImageStore
from stages.data.views import ViewRecipe, make_views
from stages.errors import UserError
from stages.models.batch_norm import normalise_rows_together
from stages.models.resnet import Recompute
from stages.models.simclr import build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.training.batches import Batch, Images, ViewLoader
from stages.training.micro_batches import Passes
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import Step, contrastive_step

EAGER_AIM, COMPILED_AIM = 2250.0, 2750.0  # images a second of an H200
END_TO_END_AIM, VIEWS_AIM = 0.9, 0.1  # shares of compute alone, of a step
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """What is measured, and for how long."""

    device: torch.device
    depth: int
    size: int
    batch: int
    photos: int
    height: int
    precision: str
    seconds: float
    compile_modes: tuple[str, ...]
    threads: int

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.device, fused_optimizer=self.device.type == "cuda")

    @property
    def recipe(self) -> ViewRecipe:
        return ViewRecipe.official(self.size)


def main() -> None:
    asked = parse_arguments()
    if not asked.tiny and not torch.cuda.is_available():
        tell(name="bench_gpu", skipped="no GPU here; --tiny runs on a CPU")
        return
    case = case_of(asked)
    checked, figures = [], []
    with tempfile.TemporaryDirectory() as folder:
        store = draw_store(case, Path(folder))
        views = draw_views(case, store)
        state, step = build(case)
        batch = Batch(views, np.arange(case.batch))
        finish(case, step(state, batch))
        once_more = partial(step, state, batch)
        for check in gpu_checks.checks(case.device, once_more):
            tell(**check)
            checked.append(check)
        table = roofline(once_more, case.batch)
        del state, step, once_more  # its memory is not a measurement's
        for figure in measure(case, store, batch):
            tell(**figure)
            figures.append(figure)
    print("\n" + as_markdown(case, checked, figures, table))
    if not all(check.get("holds", True) for check in checked):
        raise SystemExit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small, on a CPU: tries the program")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--batch", type=int, default=512, help="images of a step")
    parser.add_argument("--photos", type=int, default=2048, help="that are drawn for the shards")
    parser.add_argument(
        "--compile", nargs="*", default=["default", "reduce-overhead"], help="modes to measure"
    )
    parser.add_argument("--threads", type=int, default=2, help="batches made at once")
    return parser.parse_args()


def case_of(asked: argparse.Namespace) -> Case:
    if asked.tiny:
        cpu = torch.device("cpu")
        return Case(cpu, 18, 32, 4, 24, 40, "float32", 0.1, (), asked.threads)
    modes = tuple(asked.compile)
    seconds, gpu = asked.seconds, torch.device("cuda")
    return Case(
        gpu, 50, 224, asked.batch, asked.photos, 375, "bfloat16", seconds, modes, asked.threads
    )


def draw_store(case: Case, folder: Path) -> ImageStore:
    """Shards of photographs of many sizes, smooth and noisy, at a photo's usual rate of bits."""

    def draw(number: int) -> None:
        rng = np.random.default_rng(number)
        height = case.height - int(rng.integers(0, case.height // 8))
        width = height * 4 // 3
        coarse = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + rng.normal(0, 6, (height, width, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        (folder / "images" / "ab"[number % 2] / f"{number}.jpg").write_bytes(file.getvalue())

    for name in "ab":
        (folder / "images" / name).mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, range(case.photos)))
    wanted = Wanted(SplitSizes(4, 0.1), 0, 3, 10**7, 256, 0.0)
    source = read_class_folders(folder / "images")
    workers = os.cpu_count() or 1 if case.device.type == "cuda" else 1
    build_shards(source, wanted, folder / "shards", folder / "work", workers=workers)
    return ImageStore.open(
        folder / "shards", "train", with_labels=False, channels=3, max_pixels=10**7
    )


def draw_views(case: Case, store: ImageStore) -> torch.Tensor:
    positions_B = np.arange(case.batch) % store.n_images
    return make_views(
        to_device(store.images(positions_B), case.device),
        case.recipe,
        seed=0,
        epoch=0,
        key_hashes=key_hashes(map(str, range(case.batch))),
    )


def build(
    case: Case, passes: Passes | None = None, recompute: Recompute = "none", mode: str | None = None
) -> tuple[TrainState, Step]:
    """Network, LARS and step as pretraining has them."""
    torch.manual_seed(0)
    runtime = case.runtime
    model = runtime.place(build_simclr(build_encoder(case.depth))).train()
    model.encoder.recompute = recompute
    if passes and passes.statistics_over:
        normalise_rows_together(model, 2 * passes.statistics_over)
    state = TrainState(model, build_optimizer("lars", model, 0.01, 1e-4))
    if mode is not None:
        model.compile(mode=mode)
    return state, contrastive_step(runtime, 0.1, case.precision, "none", passes=passes)


def measure(case: Case, store: ImageStore, batch: Batch) -> Iterator[dict[str, Any]]:
    """Images a second of each; medians over steps."""
    peers = measure_peers(case, batch)
    eager = rate_of_steps(case, batch)
    yield {"name": "compute eager", **eager} | against(EAGER_AIM, eager)
    for mode in case.compile_modes:
        compiled = rate_of_steps(case, batch, mode=mode)
        yield {"name": f"compute compiled {mode}", **compiled} | against(COMPILED_AIM, compiled)
    for name, peer in peers.items():
        ratio = eager["images_per_second"] / peer["images_per_second"]
        ours = {"ratio": ratio, "target": 1.0, "peer": name}
        yield {"name": f"compute eager against {name}", **peer} | ours
    half = case.batch // 2
    for name, options in (
        ("recompute groups", {"recompute": "groups"}),
        ("recompute blocks", {"recompute": "blocks"}),
        ("in two passes", {"passes": Passes(half, half)}),
    ):
        found = rate_of_steps(case, batch, **options)
        ratio = found["images_per_second"] / eager["images_per_second"]
        yield {"name": name, **found, "ratio": ratio, "target": None, "peer": "compute eager"}
    yield from measure_views(case, store, batch, eager)


def against(aim: float, found: dict[str, Any]) -> dict[str, Any]:
    """A rate beside what an H200 should reach."""
    ratio = found["images_per_second"] / aim
    return {"ratio": ratio, "target": 1.0, "peer": f"{aim:.0f} images/s (an H200)"}


def measure_views(
    case: Case, store: ImageStore, batch: Batch, eager: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    images = to_device(store.images(np.arange(case.batch) % store.n_images), case.device)
    hashes = key_hashes(map(str, range(case.batch)))

    def draw(epoch: int = 0) -> torch.Tensor:
        return make_views(images, case.recipe, seed=0, epoch=epoch, key_hashes=hashes)

    views = rate(case, draw)
    share = eager["images_per_second"] / views["images_per_second"]
    share /= 1 + share
    yield {
        "name": "views on the device",
        **views,
        "share_of_the_step": share,
        "ratio": VIEWS_AIM / share,
        "target": 1.0,
        "peer": f"{VIEWS_AIM:.0%} of the step",
    }
    state, step = build(case)
    both = rate(case, lambda: step(state, Batch(draw(), batch.positions_B)))
    share = both["images_per_second"] / eager["images_per_second"]
    beside_eager = {"target": END_TO_END_AIM, "peer": "compute eager"}
    yield {"name": "views + compute", **both, "ratio": share} | beside_eager
    for name, images in with_decoder(case, store):
        loader = ViewLoader(
            images,
            case.recipe,
            min(case.batch, store.n_images),
            n_views=2,
            seed=0,
            device=case.device,
            n_threads=case.threads,
        )
        with closing(loader.batches(0, sys.maxsize)) as batches:
            alone = rate(case, partial(next, batches), over_all=True)
        share = alone["images_per_second"] / eager["images_per_second"]
        beside_alone = {"target": 1.0, "peer": "compute eager"}
        yield {"name": f"loader alone{name}", **alone, "ratio": share} | beside_alone
        with closing(loader.batches(0, sys.maxsize)) as batches:
            # Over all of the time: how long a step takes depends on which batch was ready.
            work = partial(step_on_the_next, step, state, batches)
            found = rate(case, work, over_all=True)
        share = found["images_per_second"] / eager["images_per_second"]
        yield {"name": f"end to end from shards{name}", **found, "ratio": share} | beside_eager


def with_decoder(case: Case, store: ImageStore) -> Iterator[tuple[str, Images]]:
    yield "", store
    try:
        yield ", decoding on the GPU", GpuDecoder(store, 3, case.device)
    except UserError as error:
        print(error, file=sys.stderr)


def step_on_the_next(step: Step, state: TrainState, batches: Iterator[Batch]) -> object:
    return step(state, next(batches))


def measure_peers(case: Case, batch: Batch) -> dict[str, dict[str, Any]]:
    try:
        from gpu_peer import plain_step
    except ImportError as error:
        print(f"no torchvision to compare with ({error})", file=sys.stderr)
        return {}
    wide = {"bfloat16": case.precision == "bfloat16"}
    return {
        f"torchvision{' channels_last' if last else ''}": rate(
            case, plain_step(case.depth, batch.views_VBCHW, channels_last=last, **wide)
        )
        for last in (False, True)
    }


def rate_of_steps(case: Case, batch: Batch, **options: Any) -> dict[str, Any]:
    state, step = build(case, **options)
    found = rate(case, lambda: step(state, batch))
    if options.get("mode"):
        torch.compiler.reset()  # recorded graphs hold memory
    return found


def rate(case: Case, work: Callable[[], object], *, over_all: bool = False) -> dict[str, Any]:
    """Images a second of something that handles a batch each time it is called."""
    on_gpu = case.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        finish(case, work())
    seconds, begun = [], time.perf_counter()
    while not seconds or time.perf_counter() < begun + case.seconds:
        started = time.perf_counter()
        done = work()
        if not over_all:
            finish(case, done)
        seconds.append(time.perf_counter() - started)
    finish(case, None)
    taken = (time.perf_counter() - begun) / len(seconds) if over_all else statistics.median(seconds)
    found = {
        "images_per_second": round(case.batch / taken, 1),
        "milliseconds": round(taken * 1e3, 3),
    }
    return found | ({"peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9} if on_gpu else {})


def finish(case: Case, _done: object) -> None:
    if case.device.type == "cuda":
        torch.cuda.synchronize()


def as_markdown(
    case: Case,
    checked: list[dict[str, Any]],
    figures: list[dict[str, Any]],
    table: list[dict[str, Any]],
) -> str:
    where = torch.cuda.get_device_name() if case.device.type == "cuda" else "CPU"
    lines = [
        f"ResNet-{case.depth}, {case.size} pixels, two views, {case.batch} images a step, "
        f"{case.precision}, channels_last, LARS; {where}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores.",
        "",
        "| | images/s | ms a step | peak GB | ratio | aim | against |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in figures:
        ratio, aim = (
            "" if one.get(key) is None else f"{one[key]:.2f}" for key in ("ratio", "target")
        )
        peak = f"{one['peak_gigabytes']:.1f}" if "peak_gigabytes" in one else ""
        lines.append(
            f"| {one['name']} | {one['images_per_second']:,.0f} | {one['milliseconds']:.1f} "
            f"| {peak} | {ratio} | {aim} | {one.get('peer', '')} |"
        )
    lines += [
        "",
        "| at an H200's peaks | of an image | ms a step | images/s |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one['limit']} | {one['amount_of_an_image']:.3g} | {one['milliseconds_a_step']:.3g} "
        f"| {one['images_per_second']:,} |"
        for one in table
    ]
    lines += ["", "| check | |", "|---|---|"]
    for one in checked:
        said = "holds" if one.get("holds") else one.get("skipped", "FAILS")
        lines.append(f"| {one['check']} | {said} |")
    return "\n".join(lines)


def tell(**line: Any) -> None:
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in line.items()
    }
    print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    main()
