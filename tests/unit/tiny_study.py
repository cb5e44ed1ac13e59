"""A whole study on drawn pictures, in seconds: real stages, run in this process, one core."""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

from stages.data.images import encode_png
from stages.records import read_json
from stages.training.fingerprint import file_digest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("bar", "disc", "frame")
SIDE = 16
TINY = {"depth": 10, "width_multiplier": 0.0625, "sk_ratio": 0.0, "stem": "small_stride2"}


def drawing(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A bright shape of a kind at a random place, on noise: (16, 16) uint8."""
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = rng.integers(6, 10, 2)
    distance = np.hypot(y - cy, x - cx)
    box = np.maximum(abs(y - cy), abs(x - cx))
    shape = {"bar": abs(y - cy) < 2, "disc": distance < 4.5, "frame": (box > 3) & (box < 6)}[kind]
    noise = rng.integers(0, 60, (SIDE, SIDE))
    return (noise + shape * rng.integers(120, 190)).astype(np.uint8)


def draw_pictures(folder: Path, train: int = 40, test: int = 12, seed: int = 0) -> None:
    """So many of each kind, a folder per split and class."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for kind in KINDS:
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / split / kind / f"{number:03d}.png"
                path.write_bytes(encode_png(drawing(kind, rng)))


def tiny_values(folder: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The smoke profile, smaller; `sections` change single values: finetune={"seeds": 1}."""
    written = yaml.safe_load((ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    smaller: dict[str, dict[str, Any]] = {
        "data": {
            **{"source": "folder", "root": str(folder / "pictures"), "image_size": SIDE},
            **{"channels": 1, "validation_images": 15, "test_fraction": 0.2, "train_limit": None},
            **{"test_limit": None, "images_per_shard": 40},
        },
        "pretrain": {"encoder": TINY, "duration": "12 steps", "warmup": "2 steps"},
        "supervised": {"duration_grid": ["15 steps"], "lr_grid": [0.01], "warmup": "2 steps"},
        "finetune": {
            **{"label_fractions": ["4_per_class"], "seeds": 2, "layers": [0, 1]},
            **{"duration": "12 steps", "warmup": "2 steps", "overrides": {}},
        },
        "semisup": {"methods": [], "duration_grid": ["10 steps"], "warmup": "2 steps"},
        "transfer": {"datasets": []},
        "runtime": {"trainings_at_once": 1, "threads": 1, "device": "cpu", "shard_workers": 1},
    }
    smaller["pretrain"]["batch_size"] = 32
    for name, values in {**smaller, **sections}.items():
        written[name] |= {**smaller.get(name, {}), **values}
    small = {"encoder": TINY, "duration": "8 steps", "seeds": 1}
    written["distill"]["same"] |= {"duration": "8 steps"}
    written["distill"]["small"] |= small
    written["distill"] |= {"teacher_layer": 1, "warmup": "2 steps", "batch_size": 32}
    return written


def write_params(folder: Path, **sections: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(tiny_values(folder, **sections), sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def run(stage: str, *arguments: str) -> None:
    """A stage's main, as `python -m stages.NAME ARGUMENTS` in the current folder."""
    module = importlib.import_module(f"stages.{stage}")
    if stage == "pretrain":
        module.main(*arguments[1:])  # after --size
        return
    with mock.patch.object(sys, "argv", [f"stages.{stage}", *arguments]):
        module.main()


def prepare(folder: Path, **sections: Mapping[str, Any]) -> None:
    """Params, shards and label subsets; the current folder must be `folder`."""
    write_params(folder, **sections)
    run("shard")
    for fraction in tiny_values(folder, **sections)["finetune"]["label_fractions"]:
        run("subsets", "--fraction", fraction)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights of every product below a folder, by its path."""
    return {
        str(path.parent.relative_to(folder)): file_digest(path)
        for path in sorted((folder / "artifacts").rglob("model.safetensors"))
    }


def rows_of(name: str) -> list[dict[str, Any]]:
    return read_json(Path(f"metrics/{name}.run.json"))["rows"]


def numbers_of(name: str) -> dict[str, Any]:
    return json.loads(Path(f"metrics/{name}.json").read_text())


@contextmanager
def told(events: list[str], owner: Any, name: str, label: str) -> Iterator[None]:
    """Note each call of a function, and let it do its work."""
    real = getattr(owner, name)

    def noting(*args: Any, **kwargs: Any) -> Any:
        events.append(label)
        return real(*args, **kwargs)

    with mock.patch.object(owner, name, noting):
        yield
