"""What every test may lean on."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib is imported: no display needed

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Figures from slow, obvious programs: $GOLDEN_DIR, or those beside the tests."""
    named = os.environ.get("GOLDEN_DIR")
    if named:
        return Path(named)
    for folder in (ROOT / "tests/golden/data", ROOT.parent / "shared/reference/golden"):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    pytest.skip("no golden data: tests/golden/data is empty and GOLDEN_DIR is not set")
