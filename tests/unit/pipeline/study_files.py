"""Files like those the stages write, drawn from a seed, for tests of the report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.report.methods import methods_of, record_name, sized_record
from stages.params import Params, check_params
from stages.records import mean_and_deviation, write_json

ROOT = Path(__file__).parents[3]
CLASSES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"]
CLASSES.append("Ankle boot")
LABELS = {"10_per_class": 100, "0.01": 550, "0.1": 5500}
# Accuracy at each label fraction, in the range a run of the quick profile gives.
ACCURACY = {
    "random_linear": (0.582, 0.686, 0.760),
    "random_knn": (0.541, 0.652, 0.741),
    "supervised": (0.717, 0.821, 0.887),
    "linear_probe": (0.745, 0.813, 0.846),
    "knn": (0.705, 0.792, 0.834),
    "finetune_layer_0": (0.751, 0.830, 0.889),
    "finetune_layer_1": (0.764, 0.833, 0.890),
    "finetune_layer_2": (0.761, 0.829, 0.888),
    "distill_same": (0.772, 0.838, 0.893),
    "distill_small": (0.758, 0.822, 0.874),
}


def quick_params(**finetune: Any) -> Params:
    written = yaml.safe_load((ROOT / "pipeline/profiles/quick.yaml").read_text(encoding="utf-8"))
    asked = {"label_fractions": list(LABELS), "layers": [0, 1, 2], "seeds": 3, **finetune}
    written["finetune"] |= {**asked, "overrides": {}}
    written["distill"]["teacher_layer"] = 1
    return check_params(written)


def with_sizes(**sizes: Any) -> Params:
    written = quick_params().model_dump(mode="json")
    asked = {"encoders": ["r10_1x_sk0"], "students": [], "label_fractions": list(LABELS)}
    return check_params({**written, "sizes": written["sizes"] | asked | sizes})


def confusion(accuracy: float, rng: np.random.Generator) -> list[list[int]]:
    """1,000 test images a class; shirts, coats and pullovers are taken for each other."""
    rows = []
    for true in range(10):
        weights = rng.uniform(0.05, 0.3, 10)
        weights[[0, 2, 4, 6]] += 3.0 if true in {0, 2, 4, 6} else 0.0
        weights[[5, 7, 9]] += 3.0 if true in {5, 7, 9} else 0.0
        weights[true] = 0
        hard = {6: -0.25, 2: -0.08, 4: -0.08, 1: 0.1, 8: 0.1, 9: 0.08}.get(true, 0.02)
        right = min(max(accuracy + hard + rng.normal(0, 0.01), 0.05), 0.99)
        wrong = rng.multinomial(1000 - round(1000 * right), weights / weights.sum())
        wrong[true] = round(1000 * right)
        rows.append([int(count) for count in wrong])
    return rows


def write_result(
    root: Path,
    params: Params,
    method: str,
    fraction: str,
    tests: list[float],
    seconds: float = 20,
    *,
    per_subset: int = 1,
    size: str | None = None,
    student: tuple[str, str] | None = None,
    parameters: int = 700_000,
) -> None:
    """Add one method's numbers, `per_subset` test accuracies per seed, to its record."""
    if student is not None:  # (teacher's folder, student)
        name = f"students/{'/'.join(student)}/{fraction}"
    else:
        known = next(m for m in methods_of(params) if m.name == method)
        name = record_name(known, fraction) if size is None else sized_record(known, size, fraction)
    rng = np.random.default_rng(len(method) + LABELS[fraction])
    rows = []
    for place, accuracy in enumerate(tests):
        seed, initialisation = divmod(place, per_subset)
        counts = confusion(accuracy, rng)
        rows.append(
            {
                "method": method,
                "label_fraction": fraction,
                "labels": LABELS[fraction],
                "seed": seed,
                "initialisation": initialisation,
                "test_accuracy": accuracy,
                "validation_accuracy": accuracy + 0.004,
                "macro_f1": accuracy - 0.003,
                "seconds": seconds / len(tests),
                "chosen": {"lr": 0.001, "duration": "300 steps"} if method == "supervised" else {},
                "parameters": parameters,
                "per_class_accuracy": [row[k] / sum(row) for k, row in enumerate(counts)],
                "calibration_error": 0.081,
                "calibration_error_scaled": 0.02,
                "confusion": counts,
                "reliability": {
                    "count": [2000, 3000, 5000],
                    "confidence": [0.45, 0.7, 0.95],
                    "accuracy": [0.40, 0.72, accuracy],
                },
            }
        )
    numbers = {
        "test_accuracy": mean_and_deviation(tests),
        "validation_accuracy": mean_and_deviation([row["validation_accuracy"] for row in rows]),
    }
    path, details = root / f"metrics/{name}.json", root / f"metrics/{name}.run.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    old_rows = json.loads(details.read_text())["rows"] if details.is_file() else []
    write_json(path, {**old, method: numbers, "seconds": old.get("seconds", 0) + seconds})
    grid = [
        {"base_lr": lr, "duration": "300 steps", "crop_area": [0.2, 1.0], "validation_accuracy": v}
        for lr, v in ((0.001, 0.713), (0.003, 0.698))
    ]
    more = {"grid": grid} if method == "supervised" else {}
    known_by = {"params": {}, "data_fingerprint": "f00d", "run": RUN}
    write_json(details, {"rows": old_rows + rows, **more, **known_by})


RUN = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "python": "3.12.1",
    "system": "Linux",
    "machine": "x86_64",
    "processor": "Some CPU @ 2.50GHz",
    "cores": 2,
    "packages": {"torch": "2.11.0", "numpy": "2.2.0", "prefect": "3.8.8", "dvc": None},
}


def write_study(root: Path, params: Params, images_NHW: np.ndarray | None = None) -> None:
    """All the files of a whole run. `images_NHW`: uint8 pictures for the gallery."""
    rng = np.random.default_rng(7)
    for method, accuracies in ACCURACY.items():
        for fraction, accuracy in zip(LABELS, accuracies, strict=True):
            spread = 0.012 if fraction == "10_per_class" else 0.004
            shared = np.random.default_rng(LABELS[fraction]).normal(0, spread, 3)
            tests = accuracy + shared + rng.normal(0, spread / 4, 3)
            tests = [float(value) for value in tests[: 1 if method == "distill_small" else 3]]
            write_result(root, params, method, fraction, tests, float(rng.uniform(8, 60)))
    for fraction, labels in LABELS.items():
        each = labels // 10
        seeds = [{"seed": s, "sha256": f"{s}" * 64, "per_class": [each] * 10} for s in range(3)]
        write_json(
            root / f"metrics/subsets/{fraction}.json",
            {"labels": labels, "per_class_min": each, "per_class_max": each},
        )
        write_json(root / f"metrics/subsets/{fraction}.run.json", {"seeds": seeds, "run": RUN})
    for method in ("supervised", "distill_same", "finetune_layer_1"):
        write_predictions(root, params, method, "10_per_class")
    write_shard(root)
    write_json(
        root / "metrics/pretrain.json",
        {
            **{"loss": 2.41, "contrastive_accuracy": 0.44, "effective_rank": 61.2},
            **{"z_std": 0.0871, "alignment": 0.31, "uniformity": -2.9, "steps": 4280},
            **{"images": 1_095_680, "seconds": 460.0, "images_per_second": 2382.0},
            **{"waited_share": 0.021},
        },
    )
    write_json(root / "metrics/pretrain.run.json", {"data_fingerprint": "f00d", "run": RUN})
    gallery = {"effective_rank_h": 31.5, "neighbour_agreement": 0.812, "seconds": 31.0}
    write_json(root / "metrics/gallery.json", gallery)
    write_transfer(root)
    write_curves(root, params, rng)
    write_gallery(root, rng, images_NHW)


def write_predictions(root: Path, params: Params, method: str, fraction: str) -> None:
    """Answers of three nets to 40 test images, of which the first six are wrong."""
    known = next(m for m in methods_of(params) if m.name == method)
    rng = np.random.default_rng(3)
    classes_N = np.arange(40) % 10
    said_RN = np.stack([np.where(np.arange(40) < 6, (classes_N + 1) % 10, classes_N)] * 3)
    path = root / f"artifacts/predictions/{record_name(known, fraction)}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        keys=np.array([f"test/<{number:03d}>" for number in range(40)]),
        classes=classes_N,
        methods=np.array([method] * 3),
        seeds=np.arange(3),
        initialisations=np.zeros(3, dtype=int),
        said=said_RN.astype(np.uint16),
        confidence=np.full((3, 40), 0.875, dtype=np.float16),
        mistakes=np.array([[0, 1, 2, 3, 4, 5, *[-1] * 6]] * 3),
        shown=np.arange(6),
        pictures=rng.integers(0, 256, (6, 28, 28, 1), dtype=np.uint8),
    )


def write_shard(root: Path) -> None:
    write_json(
        root / "metrics/shard.json",
        {
            "images": {"train": 55_000, "validation": 5_000, "test": 10_000},
            **{"classes": 10, "labelled": 60_000, "shards": 15, "bytes": 41_000_000},
            **{"quarantined": 2, "duplicates": 1, "seconds": 9.4},
            **{"near_duplicates": 74, "near_duplicates_across_splits": 18},
            "near_duplicates_dropped": 0,
        },
    )
    write_json(
        root / "metrics/shard.run.json",
        {
            "class_names": CLASSES,
            "quarantine": [
                {"key": "train/00017", "reason": "cannot identify <image>"},
                {"key": "train/04242", "reason": "truncated at 312 bytes"},
            ],
            "duplicates": [{"keys": ["train/00001", "test/09999"], "kept": "test/09999"}],
            "near_duplicates": [{"keys": ["test/2", "train/<3>"], "sides": ["train", "test"]}],
            "fingerprint": "f00d",
            "run": RUN,
        },
    )


def write_transfer(root: Path) -> None:
    accuracies = {
        "raw_pixels_linear": 0.953,
        "random_linear": 0.931,
        "linear_probe": 0.964,
        "knn": 0.951,
    }
    rows = [
        {
            **{"dataset": "digits", "method": method, "test_accuracy": accuracy},
            **{"macro_f1": accuracy - 0.001, "classes": 10, "images": 1797, "seconds": 1.2},
        }
        for method, accuracy in accuracies.items()
    ]
    skipped = [{"dataset": "elpv", "reason": "not installed; pip install elpv-dataset"}]
    write_json(root / "metrics/transfer.json", {"seconds": 5.0})
    write_json(root / "metrics/transfer.run.json", {"rows": rows, "skipped": skipped, "run": RUN})


def write_csv(path: Path, columns: str, rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [columns, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_curves(root: Path, params: Params, rng: np.random.Generator) -> None:
    rows = []
    for step in range(50, 4281, 50):
        share = step / 4280
        warm = min(step / 214, 1)
        rows.append(
            [
                step,
                step / 214,
                2.4 + 2.6 * math.exp(-6 * share) + rng.normal(0, 0.02),
                0.46 * (1 - math.exp(-5 * share)) + rng.normal(0, 0.004),
                0.06 + 0.02 * share,
                20 + 42 * (1 - math.exp(-4 * share)),
                0.002 * warm * 0.5 * (1 + math.cos(math.pi * share)),
                2380 + rng.normal(0, 40),
            ]
        )
    columns = "step,epoch,loss,contrastive_accuracy,z_std,effective_rank,lr,images_per_second"
    write_csv(root / "plots/pretrain.csv", columns, rows)
    curves: dict[str, list[list[Any]]] = {}
    for method in methods_of(params)[2:]:
        if not method.name.startswith(("supervised", "finetune", "distill")):
            continue
        for fraction in LABELS:
            name = record_name(method, fraction)
            fast = 4 if method.name.startswith("finetune") else 2.5
            losses = [
                [method.name, seed, step, math.exp(-fast * step / 300) + rng.uniform(0, 0.1), 1e-3]
                for seed in range(3)
                for step in range(0, 301, 10)
            ]
            curves.setdefault(name, []).extend(losses)
    for name, rows in curves.items():
        write_csv(root / f"plots/{name}.csv", "method,seed,step,loss,lr", rows)


def write_gallery(root: Path, rng: np.random.Generator, images_NHW: np.ndarray | None) -> None:
    if images_NHW is None:
        images_NHW = rng.integers(0, 256, (64, 28, 28), dtype=np.uint8)
    images_NHWC = images_NHW[..., None]
    crops = np.stack([np.roll(images_NHWC[:8], 4, axis=1), images_NHWC[:8, :, ::-1]])
    classes_M = rng.integers(0, 10, 2000)
    centres_K2 = rng.normal(0, 4, (10, 2))
    folder = root / "artifacts/gallery"
    folder.mkdir(parents=True)
    np.savez_compressed(
        folder / "gallery.npz",
        originals=images_NHWC[:8],
        views=crops,
        query_images=images_NHWC[8:16],
        query_classes=np.arange(8),
        neighbour_images=images_NHWC[16:56].reshape(8, 5, *images_NHWC.shape[1:]),
        neighbour_classes=np.where(rng.random((8, 5)) < 0.85, np.arange(8)[:, None], -1),
        neighbour_similarity=np.sort(rng.uniform(0.9, 0.99, (8, 5)))[:, ::-1],
        map_xy=(centres_K2[classes_M] + rng.normal(0, 1, (2000, 2))).astype(np.float32),
        map_xy_random=(centres_K2[classes_M] / 4 + rng.normal(0, 1, (2000, 2))).astype(np.float32),
        map_classes=classes_M,
    )
