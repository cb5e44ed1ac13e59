"""Numbers and where they came from."""

import json
from pathlib import Path

import pytest

from stages import records


def test_mean_and_deviation_over_seeds():
    assert records.mean_and_deviation([0.7, 0.8, 0.9]) == pytest.approx({"mean": 0.8, "std": 0.1})
    assert records.mean_and_deviation([0.7]) == {"mean": 0.7, "std": 0.0}


def test_results_are_numbers_per_method_and_rows_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"method": "knn", "seed": seed, "test_accuracy": 0.5 + seed, "validation_accuracy": 0.25}
        for seed in range(2)
    ]
    records.write_results("probe/0.01", rows, seconds=1.234, params={"k": 5})
    numbers = json.loads(Path("metrics/probe/0.01.json").read_text())
    assert numbers["knn"]["test_accuracy"]["mean"] == 1.0
    assert numbers["seconds"] == 1.23
    beside = json.loads(Path("metrics/probe/0.01.run.json").read_text())
    assert beside["rows"] == rows
    assert beside["params"] == {"k": 5}
    assert set(beside["run"]) >= {"commit", "processor", "packages", "python"}


def test_json_is_whole_or_absent(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(tmp_path / "bad.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
