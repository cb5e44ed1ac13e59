"""Commands: what they print and what they end with."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import profiles
from pipeline.artifacts import first_table, flat, slug
from pipeline.cli import main
from stages.errors import UserError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(profiles.text_of("quick"))
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def test_profile_without_a_name_lists_them_and_marks_the_current(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("profile") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "smoke",
        "*",
        "study",
        "gpu",
        "imagenet_v1",
        "imagenet",
    ]
    assert lines[1].startswith("* quick ")


def test_profile_with_a_name_writes_it(project: Path, capsys: pytest.CaptureFixture[str]):
    assert run("profile", "smoke") == 0
    assert Path("params.yaml").read_text() == profiles.text_of("smoke")
    assert "finetune.seeds: 3 -> 2" in capsys.readouterr().out


def test_check_accepts_good_params(project: Path, capsys: pytest.CaptureFixture[str]):
    assert run("check") == 0
    assert "good (from the profile quick)" in capsys.readouterr().out


def test_misspelt_key_ends_with_2_and_one_message(project: Path, root: Path):
    text = profiles.text_of("quick").replace("  temperature: 0.2", "  temprature: 0.2")
    Path("params.yaml").write_text(text)
    for command in ("check", "run", "serve"):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", command],
            env={"PYTHONPATH": str(root), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: params.yaml can't be used:\n")
        assert "pretrain.temprature: no such key" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_word_of_run_that_cannot_be_used_is_named_with_its_value(project: Path):
    with pytest.raises(UserError, match=r"^concurrency: .* \(you wrote 0\)$"):
        main(["run", "--concurrency", "0"])


def test_schema_prints_what_the_file_holds(
    project: Path, root: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("schema") == 0
    assert capsys.readouterr().out == (root / "pipeline/params.schema.json").read_text()


def test_results_show_the_table_and_where_the_report_is(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(UserError, match="make reproduce"):
        main(["results"])
    Path("report").mkdir()
    Path("report/report.md").write_text("# Report\n\n| method | 1% |\n|---|---|\n\n| other |\n")
    assert run("results") == 0
    out = capsys.readouterr().out
    assert "| method | 1% |\n|---|---|\n" in out
    assert "| other |" not in out
    assert str(project / "report/index.html") in out
    assert "\nprofile: quick (others: smoke, study" in out
    assert "by now" not in out


def test_results_of_the_profile_before_are_not_told_as_those_of_params_yaml(
    project: Path, capsys: pytest.CaptureFixture[str]
):
    Path("report").mkdir()
    Path("report/report.md").write_text("| method |\n|---|\n\n- Profile: gpu\n")
    assert run("results") == 0
    out = capsys.readouterr().out
    assert "\nprofile: gpu (others: smoke, quick" in out
    assert "params.yaml holds the profile quick by now" in out


def test_table_ends_where_the_first_one_ends():
    assert first_table("text\n| a |\n|---|\n| 1 |\n\n| b |") == "| a |\n|---|\n| 1 |"
    assert first_table("no table") == ""


def test_nested_numbers_become_one_row_each():
    assert flat({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}


def test_keys_are_what_prefect_takes():
    assert slug("metrics", "finetune@10_per_class-1") == "metrics-finetune-10-per-class-1"
