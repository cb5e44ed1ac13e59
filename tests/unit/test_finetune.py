"""The recipe of a label fraction."""

from pathlib import Path

import pytest
import yaml

from stages.finetune import schooling_for
from stages.params import check_params

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("profile", "fraction", "duration", "batch_size", "base_lr"),
    [
        ("imagenet", "0.01", "60 epochs", 1024, 0.002),
        ("imagenet", "0.1", "30 epochs", 1024, 0.002),
        ("imagenet", "1.0", "30 epochs", 1024, 0.002),
        ("imagenet_v1", "0.01", "60 epochs", 4096, 0.05),
        ("imagenet_v1", "0.1", "30 epochs", 4096, 0.05),
    ],
)
def test_the_papers_fine_tuning(
    profile: str, fraction: str, duration: str, batch_size: int, base_lr: float
):
    text = (ROOT / f"pipeline/profiles/{profile}.yaml").read_text(encoding="utf-8")
    schooling = schooling_for(check_params(yaml.safe_load(text)), fraction, seed=0)
    found = (schooling.duration, schooling.batch_size, schooling.optimizer.base_lr)
    assert found == (duration, batch_size, base_lr)


def test_a_fraction_overrides_what_it_names_and_nothing_else():
    text = (ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8")
    written = yaml.safe_load(text)
    plain = schooling_for(check_params(written), "10_per_class", seed=1)
    written["finetune"]["overrides"] = {"10_per_class": {"batch_size": 7, "base_lr": 0.5}}
    changed = schooling_for(check_params(written), "10_per_class", seed=1)
    assert (changed.batch_size, changed.optimizer.base_lr) == (7, 0.5)
    assert (changed.duration, changed.views) == (plain.duration, plain.views)
