"""The JSON we write: numbers for `dvc metrics`, and beside them where each number came from.

metrics/NAME.json holds nothing but numbers; metrics/NAME.run.json holds the params, the data
fingerprint, the commit, the hardware and the versions behind them. No torch in here.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

METRICS_FOLDER = Path("metrics")
PROGRESS_FOLDER = "STAGE_PROGRESS_FOLDER"  # variable: where trainings say how far they are
PACKAGES = ("torch", "torchvision", "numpy", "webdataset", "dvc", "prefect")


def write_record(
    name: str, numbers: Mapping[str, Any], details: Mapping[str, Any], folder: Path | None = None
) -> None:
    """Write metrics/NAME.json (numbers) and metrics/NAME.run.json (details and provenance).

    Args:
        name: the stage, with its matrix item where it has one: "finetune/0.01-1".
        numbers: numbers only, nested by at most one mapping.
        details: anything JSON can hold: params, fingerprints, per-class tables.
        folder: None: metrics/ here.
    """
    folder = METRICS_FOLDER if folder is None else folder
    write_json(folder / f"{name}.json", numbers)
    write_json(folder / f"{name}.run.json", {**details, "run": provenance()})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all, with a line's end at the end of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    """Mean and sample standard deviation over seeds; the deviation of one seed is 0."""
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0}


def provenance() -> dict[str, Any]:
    """Commit, hardware and versions of this run."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The commit of the code, with '+changes' when tracked code differs from it."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "stages", "pipeline")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def by_seed(rows: Sequence[Mapping[str, Any]], score: str) -> list[float]:
    """A score for each seed, the mean of its rows."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    return [fmean(row[score] for row in rows if row["seed"] == seed) for seed in seeds]


def write_results(
    name: str, rows: Sequence[Mapping[str, Any]], *, seconds: float, **details: Any
) -> None:
    """Write the scores of one stage: mean and deviation per method, and beside them every row.

    Both are over seeds, that is label subsets; rows of one seed (initialisations) are averaged.

    Args:
        name: the stage and its matrix item: "finetune/0.01-layer1".
        rows: one per method and seed, with `method`, `seed`, `test_accuracy` and
            `validation_accuracy` (shares in [0, 1]) and whatever else belongs to the run.
        seconds: wall time of the stage.
        details: params, data fingerprint and the like.
    """
    methods = dict.fromkeys(row["method"] for row in rows)
    numbers: dict[str, Any] = {
        method: {
            score: mean_and_deviation(
                by_seed([row for row in rows if row["method"] == method], score)
            )
            for score in ("test_accuracy", "validation_accuracy")
        }
        for method in methods
    }
    numbers["seconds"] = round(seconds, 2)
    write_record(name, numbers, {"rows": list(rows), **details})
