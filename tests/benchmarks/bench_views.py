"""JPEG bytes to two normalised views: ours against lightly's SimCLRTransform, on one core.

    python tests/benchmarks/bench_views.py [--rounds 7]

One JSON line per figure; `ratio` >= `target` is good. Each takes the same JPEG bytes through
decoding, two views and normalisation: lightly picture by picture, as its data sets do, ours by
the batch, as our loader does. One thread; runs alternate, and medians of the seconds of the
processor are compared, so that other programs on the machine count for neither. Pictures are
drawn: smooth shapes and some noise, at a photo's usual rate of bits. The peer is in the dependency
group `bench`, which `make peers` installs.

The recipes: `official` is our default, `torchvision` the arithmetic that lightly's transform is
built on. Three lines more say what decoding alone takes against Pillow, and what the fused program
gains over the same views in torch operations.
"""

import argparse
import io
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.data.fast_jpeg import decode_plain_jpeg
from stages.data.random_numbers import key_hashes
from stages.data.view_recipe import ViewRecipe
from stages.data.views import make_views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_PIXELS = 10**8

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Pictures of one size, the views made of them, and how many times as fast ours should be."""

    height: int
    width: int
    size: int
    n_pictures: int
    target: float

    @property
    def blurs(self) -> bool:
        return self.size > 32  # as both papers do it

    def __str__(self) -> str:
        return f"{self.width}x{self.height}_to_{self.size}"


CASES = (Case(350, 400, 224, 24, 2.5), Case(96, 96, 96, 128, 5.0), Case(32, 32, 32, 512, 8.0))


def draw_jpegs(case: Case) -> list[bytes]:
    rng = np.random.default_rng(case.size)
    height, width = case.height, case.width
    drawn = []
    for _ in range(case.n_pictures):
        coarse = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        )
        noisy = smooth + rng.normal(0, 6, (height, width, 3))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        drawn.append(file.getvalue())
    return drawn


def decode(jpegs: list[bytes]) -> list[Tensor]:
    """As the store does: by the fast way, the channels side by side in memory."""
    decoded = [decode_plain_jpeg(data, 3, MAX_PIXELS) for data in jpegs]
    return [torch.from_numpy(pixels_HWC).permute(2, 0, 1) for pixels_HWC in decoded]


def decode_with_pillow(jpegs: list[bytes]) -> None:
    for data in jpegs:
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def our_views(case: Case, images: list[Tensor], recipe: ViewRecipe, program: str) -> Tensor:
    hashes = key_hashes(map(str, range(len(images))))
    options = {"mean": MEAN, "std": STD, "program": program}
    batch = images if case.height != case.width else torch.stack(images)
    return make_views(batch, recipe, seed=0, epoch=0, key_hashes=hashes, **options)


def build_peer(case: Case) -> Callable[[list[bytes]], None] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lightly.transforms import SimCLRTransform
    except ImportError as error:
        print(
            f"lightly, the peer, can't be imported ({error}): no comparison with it.\n"
            "  Install it beside the locked packages: make peers",
            file=sys.stderr,
        )
        return None
    normalise = {"mean": list(MEAN), "std": list(STD)}
    transform = SimCLRTransform(
        case.size, gaussian_blur=0.5 if case.blurs else 0.0, normalize=normalise
    )

    def run(jpegs: list[bytes]) -> None:
        for data in jpegs:
            first, second = transform(Image.open(io.BytesIO(data)).convert("RGB"))
            assert first.shape == second.shape == (3, case.size, case.size)

    return run


def seconds_of_each(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of the processor, the runs taken in turn; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def measure(case: Case, rounds: int) -> Iterator[dict]:
    jpegs = draw_jpegs(case)
    images = decode(jpegs)
    recipes = {
        "official": ViewRecipe.official(case.size, blur=case.blurs),
        "torchvision": ViewRecipe.torchvision(case.size, blur=case.blurs),
    }
    runs: dict[str, Run] = {
        "decode": lambda: decode(jpegs),
        "decode with Pillow": lambda: decode_with_pillow(jpegs),
    }
    for name, recipe in recipes.items():
        runs[name] = lambda recipe=recipe: our_views(case, decode(jpegs), recipe, "auto")
    runs["views"] = lambda: our_views(case, images, recipes["official"], "auto")
    runs["views in torch"] = lambda: our_views(case, images, recipes["official"], "eager")
    peer = build_peer(case)
    if peer is not None:
        runs["lightly"] = lambda: peer(jpegs)
    seconds = seconds_of_each(runs, rounds)
    setting = {"bytes_of_a_picture": round(sum(map(len, jpegs)) / len(jpegs)), "threads": 1}
    pairs = [(f"decode_{case.width}x{case.height}", "decode", "decode with Pillow", None)]
    pairs.append((f"views_of_pixels_{case}", "views", "views in torch", None))
    if peer is not None:
        pairs += [(f"views_{case}_{name}", name, "lightly", case.target) for name in recipes]
    for name, ours, theirs, target in pairs:
        yield {
            "name": name,
            "ratio": round(seconds[theirs] / seconds[ours], 2),
            "target": target,
            "peer": theirs,
            "ours_microseconds": round(seconds[ours] / len(jpegs) * 1e6, 1),
            "peer_microseconds": round(seconds[theirs] / len(jpegs) * 1e6, 1),
            **setting,
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for case in CASES:
        for figure in measure(case, rounds):
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
