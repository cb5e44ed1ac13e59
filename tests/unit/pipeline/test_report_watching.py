"""The report shows what was watched in pretraining, and what befell it."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.report.results import Study
from pipeline.report.training import pretraining_section
from stages.params import check_params


@pytest.fixture
def study(tmp_path: Path, root: Path) -> Study:
    """A curve as pretraining writes it: looks of the online probe in some rows only."""
    (tmp_path / "plots").mkdir()
    (tmp_path / "metrics").mkdir()
    (tmp_path / "plots/pretrain.csv").write_text(
        "step,epoch,loss,grad_norm,update_ratio,queue_age,lr,images_per_second,online_knn\n"
        "10,0.5,6.5,19.6,0.008,2.5,0.002,210,\n"
        "20,1.0,5.9,12.3,0.006,4.5,0.001,413,0.29\n"
        "30,1.5,5.6,11.3,0.004,4.5,0.0005,413,\n"
        "40,2.0,5.5,10.3,0.002,4.5,0.0002,413,0.42\n",
        encoding="utf-8",
    )
    (tmp_path / "metrics/pretrain.json").write_text('{"loss": 5.5}', encoding="utf-8")
    events = [
        {"kind": "rollback", "from_step": 1234, "to_step": 800, "lr_factor": 0.5, "cause": "?"},
        {"kind": "collapse", "step": 40},
    ]
    details = json.dumps({"events": events})
    (tmp_path / "metrics/pretrain.run.json").write_text(details, encoding="utf-8")
    values = yaml.safe_load((root / "pipeline/profiles/quick.yaml").read_text(encoding="utf-8"))
    return Study(tmp_path, check_params(values))


def test_curves_of_what_is_watched_are_drawn(study: Study):
    page = pretraining_section(study)
    for title in ("Norm of the gradient", "Update, share of the weights", "Age of the queue"):
        assert title in page
    # Rows without a look are left out of its curve.
    assert "Validation, kNN on h by epoch. Validation, kNN on h: 29% at 1, 42% at 2" in page
    assert "Validation, linear on h" not in page


def test_rollbacks_and_a_collapse_are_told(study: Study):
    page = pretraining_section(study)
    assert "rolled back from step 1,234 to 800, collapsed by step 40" in page
