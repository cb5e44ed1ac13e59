"""Who may import whom, beyond what import-linter states in pyproject.toml."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "stages").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")])
FOR_THE_PIPELINE = {"stages.params", "stages.records", "stages.errors"}


def imported(file: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names.add(node.module or "")
    return names


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("package", sorted({file.parent for file in FILES}), ids=named)
def test_package_has_an_empty_init(package: Path):
    assert (package / "__init__.py").read_bytes() == b""


@pytest.mark.parametrize("file", [f for f in FILES if "pipeline" in f.parts], ids=named)
def test_pipeline_uses_params_records_and_errors_of_the_stages_only(file: Path):
    foreign = {name for name in imported(file) if name.split(".")[0] == "stages"}
    sections = {name for name in foreign if name.startswith("stages.sections.")}
    assert foreign - sections <= FOR_THE_PIPELINE
    assert not {name.split(".")[0] for name in imported(file)} & {"torch", "torchvision"}


@pytest.mark.parametrize("file", [f for f in FILES if "stages" in f.parts], ids=named)
def test_stages_know_neither_the_pipeline_nor_its_tools(file: Path):
    assert not {name.split(".")[0] for name in imported(file)} & {"pipeline", "prefect", "dvc"}


STAGE_FILES = [file for file in (ROOT / "stages").glob("*.py") if file.name != "__init__.py"]
LIGHT = {"stages.params", "stages.records", "stages.errors"}


@pytest.mark.parametrize("file", STAGE_FILES, ids=named)
def test_stage_imports_no_other_stage(file: Path):
    others = {f"stages.{other.stem}" for other in STAGE_FILES} - LIGHT
    assert imported(file) & others == set()
