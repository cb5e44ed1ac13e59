"""Write tests/golden/data: the part of a full golden set that the tests need at the least.

    python tests/golden/make_data.py FOLDER_OF_THE_FULL_SET

Arrays are copied bit for bit. What is left out is named below; GOLDEN_DIR runs the tests on all
of a set. The copy must stay under 10 MB.
"""

import io
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
LIMIT = 10_000_000  # bytes

# Each stem once: CIFAR's, ResNet-D's with selective kernels, and the plain one at 224 pixels.
NETS = ("r18_w0.0625_sk0_cifar32", "r50_w0.0625_sk0.0625_64", "full_r50_w1_sk0_224")
FOLDERS = (
    "nets/r18_w0.0625_sk0_cifar32/tf1_checkpoint",
    "nets/r18_w0.0625_sk0_cifar32/tf2_checkpoint",
    "train_run/saved_model_variables",
)
FILES = (
    "augment.json",
    "augment.npz",
    "augment_stats.npz",
    "distill.json",
    "distill.npz",
    "lars.json",
    "lars.npz",
    "lr_schedule.json",
    "nt_xent.json",
    "nt_xent.npz",
    "variable_names.json",
    "nets/r18_w0.0625_sk0_cifar32/tf1_checkpoint_entries.json",
    "nets/r18_w0.0625_sk0_cifar32/tf2_checkpoint_entries.json",
    "train_run/run.json",
    "train_run/run.npz",
    "train_run/saved_model.json",
)

# Arrays by pattern: read by no test, told by others, or the largest of several like cases.
LEFT_OUT = {
    "augment.npz": r"^center3_",
    "distill.npz": r"^(kd3|sup1)_",
    "nt_xent.npz": r"_logits_ab$|^case6_",
    "io.npz": r"^train_proj_out$",
    "run.npz": r"^pretrain/step1/.*(kernel|gamma|beta|bias)$|^saved_model_out/block_group",
}
WORTH = 0.95  # of a file's size; above it the file is copied as it is


def without_large_cases(name: str, described: Any) -> Any:
    """A JSON file without the cases whose arrays are left out."""
    match name:
        case "augment.json":
            centers = [case for case in described["center_crop"] if case["index"] != 3]
            return described | {"center_crop": centers}
        case "distill.json":
            large = [("kd", 3), ("supervised", 1)]
            return [case for case in described if (case["kind"], case["case"]) not in large]
        case "nt_xent.json":
            return [case for case in described if case["case"] != 6]
        case "variable_names.json":
            models = {n: rows for n, rows in described["models"].items() if n != "r50_1x_sk1"}
            return described | {"models": models}
    return described


def main() -> None:
    full = Path(sys.argv[1])
    shutil.rmtree(DATA, ignore_errors=True)
    of_nets = [
        f"nets/{net}/{name}" for net in NETS for name in ("variables.json", "io.npz", "weights.npz")
    ]
    for name in (*FILES, *of_nets):
        if (full / name).exists():  # a net of full width has no weights.npz
            copy(full / name, DATA / name)
    for folder in FOLDERS:
        for path in sorted((full / folder).iterdir()):
            copy(path, DATA / folder / path.name)
    size = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    sys.stdout.write(f"{size:,} bytes in {DATA}\n")
    if size >= LIMIT:
        sys.exit(f"that is {size - LIMIT:,} bytes too many")


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    content = source.read_bytes()
    if source.suffix == ".npz":
        left_out = re.compile(LEFT_OUT.get(source.name, "(?!)"))
        arrays = {name: a for name, a in np.load(source).items() if not left_out.search(name)}
        packed = packed_smallest(arrays)
        content = packed if len(packed) < WORTH * len(content) else content
    elif source.suffix == ".json":
        described = json.loads(content)
        kept = without_large_cases(source.name, described)
        content = content if kept == described else f"{json.dumps(kept)}\n".encode()
    target.write_bytes(content)


def packed_smallest(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz, each array packed by the method that packs it best; np.load reads them all."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            entry = zipfile.ZipInfo(f"{name}.npy")  # of 1980: the same bytes every time
            methods = (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
            entry.compress_type = min(methods, key=lambda m: packed_size(file.getvalue(), m))
            archive.writestr(entry, file.getvalue(), compresslevel=9)
    return packed.getvalue()


def packed_size(content: bytes, method: int) -> int:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method, compresslevel=9) as archive:
        archive.writestr("array", content)
    return len(packed.getvalue())


if __name__ == "__main__":
    main()
