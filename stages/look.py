"""What a folder holds, as JSON on stdout: the looking behind `python -m pipeline init`.

It reads the folder with the readers of the stage shard, so what it finds is what that stage will.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.examine import read_bounded
from stages.data.hash_order import hash_ranks
from stages.data.images import DamagedImageError, decode
from stages.data.layout import recognise
from stages.data.reading import read_source
from stages.data.sources import SPLITS, Picture, Source
from stages.errors import run_stage
from stages.sections.data import DataParams

DECODED = 400  # images, spread over all by the hash of their key
_MAX_PIXELS = 100_000_000
_TINT = 8  # levels between channels; a tint this faint, as of a scanner, is no colour


def main() -> None:
    asked = parse_arguments()
    layout = recognise(asked.folder, asked.labels, asked.unlabelled)
    source = read_source(data_of(layout))
    json.dump({"data": layout, **counts_of(source), **appearance_of(source)}, sys.stdout)


def data_of(layout: dict[str, Any]) -> DataParams:
    """The layout as params; what decides no reading is a placeholder."""
    return DataParams(**layout, image_size=32, channels=3, validation_images=1)


def counts_of(source: Source) -> dict[str, Any]:
    """Images and labels, by split and class."""
    labels = Counter((p.split, p.class_name) for p in source.pictures if p.class_name is not None)
    sides = {split: split for split in SPLITS} | {None: "not said"}
    return {
        "images": len(source.pictures),
        "class_names": list(source.class_names),
        "unlabelled": sum(picture.class_name is None for picture in source.pictures),
        "per_class": {
            name: counts
            for side, name in sides.items()
            if any(counts := [labels[side, class_name] for class_name in source.class_names])
        },
        "splits": dict(Counter(sides[picture.split] for picture in source.pictures)),
        "refused": len(source.refused),
    }


def appearance_of(source: Source) -> dict[str, Any]:
    """Sizes, colour, bytes and damage of some of the pictures."""
    some = sample_of(source.pictures, DECODED)
    sides, shapes, bytes_each, damaged, colourful = [], [], [], [], 0
    for picture in some:
        try:
            data = read_bounded(picture)
            pixels_HWC = decode(data, 3, _MAX_PIXELS)
        except (DamagedImageError, OSError) as error:
            damaged.append([picture.key, str(error)])
            continue
        height, width, _ = pixels_HWC.shape
        sides.append(min(height, width))
        shapes.append(max(height, width) / min(height, width))
        bytes_each.append(len(data))
        colourful += np.ptp(pixels_HWC, axis=2).max() > _TINT
    return {
        "decoded": len(some),
        "damaged": damaged,
        "colourful": int(colourful),
        "shorter_side": np.percentile(sides, [0, 10, 50, 90, 100]).tolist() if sides else [],
        "aspect": float(np.median(shapes)) if shapes else 1.0,
        "bytes_each": float(np.mean(bytes_each)) if bytes_each else 0.0,
    }


def sample_of(pictures: Sequence[Picture], count: int) -> list[Picture]:
    order = np.argsort(hash_ranks([picture.key for picture in pictures], 0, "look"))
    return [pictures[place] for place in sorted(order[:count].tolist())]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=Path, help="CSV of key,label")
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[], help="further folders")
    return parser.parse_args()


if __name__ == "__main__":
    run_stage(main)
