"""What the documentation names is there."""

import ast
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import parser
from pipeline.report.into_file import results_table
from stages.params import Params, check_params, load_params

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "pipeline/docs").glob("*.md"))]
PARAMS_FILES = sorted((ROOT / "pipeline/docs").glob("*.params.yaml"))
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"((?:stages|pipeline|tests)/[\w./-]*\.\w+)(?:::(\w+))?")
PARAM = re.compile(rf"(?:{'|'.join(Params.model_fields)})(?:\.\w+)+")
COMMAND = re.compile(r"^\$.* python -m pipeline ?(.*)$", re.MULTILINE)
MODULE = re.compile(r"-m (stages\.[a-z_]+)")
N_TRAPS = 32


def named(page: Path) -> list[str]:
    """Everything a page writes as code."""
    return CODE.findall(page.read_text(encoding="utf-8"))


@cache
def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_are_pages():
    assert len(PAGES) > 1


def test_commands_that_the_pages_type_are_understood():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    typed = COMMAND.findall(text)
    assert typed
    for line in typed:  # a word that is not known ends the program
        assert parser().parse_args(shlex.split(line, comments=True)).command
    stages = {f"{name.replace('.', '/')}.py" for name in MODULE.findall(text)}
    assert stages
    assert [file for file in sorted(stages) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_a_page_names_exist(page: Path):
    missing = []
    for text in named(page):
        if found := FILE.fullmatch(text):
            file, test = ROOT / found[1], found[2]
            if not file.is_file() or (test and test not in functions(file)):
                missing.append(text)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_params_that_a_page_names_exist(page: Path):
    missing = []
    for text in named(page):
        if PARAM.fullmatch(key := text.partition(":")[0]):
            model: Any = Params
            for name in key.split("."):
                fields = getattr(model, "model_fields", {})
                if name not in fields:
                    missing.append(text)
                    break
                model = fields[name].annotation
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_one_of_its_headings_or_a_file(page: Path):
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    broken = [
        target
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not target.startswith("http")
        and (
            target.removeprefix("#") not in headings
            if target.startswith("#")
            else not (page.parent / target).exists()
        )
    ]
    assert broken == []


@pytest.mark.parametrize("file", PARAMS_FILES, ids=lambda file: file.name)
def test_params_that_a_page_offers_are_good_and_whole(file: Path):
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    check_params(written, file.name)
    assert set(written) == set(Params.model_fields)
    assert any(f"cp pipeline/docs/{file.name} params.yaml" in page.read_text() for page in PAGES)


def test_every_known_trap_has_a_decision():
    text = (ROOT / "pipeline/docs/faithfulness.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert numbers == list(range(1, N_TRAPS + 1))


def test_results_table_of_the_readme_is_that_of_the_metrics_in_git():
    if not is_as_committed("metrics", "params.yaml"):
        pytest.skip("metrics/ or params.yaml differ from the commit: a run of somebody's")
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    table = results_table(ROOT, load_params(ROOT / "params.yaml"))
    assert [line for line in table.splitlines() if line not in lines] == []


def is_as_committed(*paths: str) -> bool:
    words = ["git", "status", "--porcelain", "--", *paths]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stdout
