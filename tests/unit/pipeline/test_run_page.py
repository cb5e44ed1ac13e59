"""What a run shows of itself: how it came about, its curves, its answer."""

import base64
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.dvc import Workspace
from pipeline.parameters import ChainParameters
from pipeline.report.results import Study
from pipeline.results_page import answer_of, pictures_of
from pipeline.what_ran import commit_line, name_of_run, what_ran
from tests.unit.pipeline.study_files import quick_params, write_study

SVG = "{http://www.w3.org/2000/svg}"
PICTURE = re.compile(r"!\[([^\]]+)\]\(data:(image/[a-z+]+);base64,([^)]+)\)")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    write_study(root, quick_params())
    return Study(root, quick_params())


def commit(words: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", words], check=True)


def test_account_names_commit_changes_and_what_differs_from_params(checkout: Path):
    assert commit_line(checkout).startswith("none")
    commit("a | b")
    assert re.fullmatch(r"[0-9a-f]{7,} a \\\| b, nothing changed since", commit_line(checkout))
    Path("trainer.py").write_text("changed")
    Path("dvc.lock").write_text("results of a run are no change")

    project = Workspace(checkout)
    asked = ChainParameters(targets=["train"], time_limit_minutes=5)
    account = what_ran(project, project, asked)
    assert "**with changes** in `trainer.py` |" in account
    assert "| Profile | `smoke` |" in account
    assert "| Stages | `train` |" in account
    assert "| Time limit | 5 min |" in account
    assert "pipeline apply" not in account
    assert "temperature:" in account  # all params

    beside = Workspace(checkout / "runs/workspaces/smoke-1")
    beside.root.mkdir(parents=True)
    asked = ChainParameters(overrides={"pretrain.seed": 7})
    text = asked.params_text(Path("params.yaml").read_text())
    (beside.root / "params.yaml").write_text(text)
    account = what_ran(project, beside, asked)
    assert re.search(r"pretrain\.seed: \d+ -> 7\n```", account)
    assert "python -m pipeline apply smoke-1" in account


def test_run_is_named_by_what_it_was_asked_for(checkout: Path):
    assert name_of_run(ChainParameters()) == "smoke: the whole chain"
    asked = ChainParameters(profile="quick", overrides={"a": 1}, targets=["report"], force=True)
    assert name_of_run(asked) == "quick: 1 override, up to report, all again"


@pytest.mark.parametrize(("stage", "count"), [("pretrain", 4), ("finetune@0.01", 1)])
def test_curves_are_pictures_that_need_no_page_around_them(study: Study, stage: str, count: int):
    shown = PICTURE.findall(pictures_of(study, stage))
    assert len(shown) == count
    for alt, media_type, data in shown:
        assert alt
        assert media_type == "image/svg+xml"
        picture = ElementTree.fromstring(base64.b64decode(data))  # our own
        style = picture.find(f"{SVG}style")
        ground = picture.find(f"{SVG}rect")
        assert style is not None
        assert ground is not None
        assert ground.get("fill") == "#fff"
        text = base64.b64decode(data).decode()
        defined = set(re.findall(r"--([\w-]+):", style.text or ""))
        assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= defined


def test_views_are_shown_and_a_stage_without_pictures_shows_none(study: Study):
    [(_, media_type, data)] = PICTURE.findall(pictures_of(study, "gallery"))
    assert media_type == "image/png"
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert pictures_of(study, "shard") == ""
    assert pictures_of(study, "score@0.1") == ""


def test_answer_has_table_plot_and_where_the_report_is(study: Study):
    shown = answer_of(study, None)
    assert "| Supervised from scratch, tuned |" in shown
    assert len(PICTURE.findall(shown)) == 1
    assert f"`{study.root / 'report/index.html'}`" in shown
    assert "http" not in PICTURE.sub("", shown)
