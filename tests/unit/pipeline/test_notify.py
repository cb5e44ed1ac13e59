"""Word to people: what a webhook gets when a run failed or came out better, and when not."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import states
from prefect.client.schemas.objects import FlowRun

from pipeline.dvc import Workspace
from pipeline.flows import simclr_chain
from pipeline.notify import (
    WEBHOOK,
    compare,
    post,
    send_word_if_better,
    send_word_of_failure,
    word_of,
)
from pipeline.run_graph import StageFailed
from pipeline.scores import Score
from stages.errors import USER_MISTAKE
from stages.records import write_json


def score(fraction: str, validation: float, method: str = "finetune", std: float = 0.0) -> Score:
    return Score(method, fraction, validation - 0.01, std, validation, std)


def test_word_arrives_and_a_receiver_that_is_busy_is_asked_again(receiver: Any):
    receiver.turn_away = 2
    assert post({"text": "±"})
    assert (receiver.turned_away, receiver.got) == (2, [{"text": "±"}])


def test_a_receiver_that_is_away_costs_a_warning_that_keeps_its_address(
    receiver: Any, caplog: pytest.LogCaptureFixture
):
    receiver.turn_away = 9
    assert not post({"text": "x"})
    assert f"no word could be sent to ${WEBHOOK}: HTTP Error 503" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("address", ["hooks/secret", "http://host:secret/", "http:///secret"])
def test_an_address_that_is_none_costs_a_warning_that_keeps_it(
    address: str, receiver: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv(WEBHOOK, address)
    assert not post({"text": "x"})
    assert f"no word could be sent to ${WEBHOOK}: " in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("name", ["Failed", "Crashed"])
def test_a_run_that_failed_says_why_and_one_that_was_lost_that_it_was(name: str, receiver: Any):
    run = FlowRun(name="amber-owl", flow_id=uuid4())
    error = StageFailed("train", USER_MISTAKE, "  no images")
    state = {
        "Failed": states.Failed(message="Flow run encountered an exception", data=error),
        "Crashed": states.Crashed(message="Process exited with status code: -9"),
    }[name]
    send_word_of_failure(simclr_chain, run, state)
    (word,) = receiver.got
    assert (word["event"], word["state"], word["run"]) == (name.lower(), name, "amber-owl")
    why = {"Failed": "no images", "Crashed": "status code: -9"}[name]
    assert word["message"].endswith(why)


def test_without_an_address_nothing_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(WEBHOOK, raising=False)
    assert not post({"text": "x"})


def test_better_means_more_than_another_seed_would_give():
    then = [score("0.1", 0.80, std=0.01), score("0.01", 0.60, std=0.03)]
    noisy = compare([score("0.1", 0.82, std=0.01), score("0.01", 0.61, std=0.03)], then, "then")
    assert noisy is not None
    assert noisy.better_by == pytest.approx(0.015)
    assert noisy.noise == pytest.approx(0.02)
    assert not noisy.is_better
    clear = compare([score("0.1", 0.85, std=0.01), score("0.01", 0.63, std=0.03)], then, "then")
    assert clear is not None
    assert clear.is_better
    assert clear.test_by == {"0.1": pytest.approx(0.05), "0.01": pytest.approx(0.03)}


def test_each_side_is_the_method_that_its_validation_chose():
    now = [score("0.1", 0.7, "a"), Score("b", "0.1", 0.99, 0.0, 0.5, 0.0)]
    compared = compare(now, [score("0.1", 0.6, "c"), score("0.1", 0.5, "d")], "then")
    assert compared is not None
    assert compared.better_by == pytest.approx(0.1)
    assert compared.test_by == {"0.1": pytest.approx(0.1)}


def test_fractions_that_only_one_side_has_are_not_compared():
    assert compare([score("0.1", 0.7)], [score("0.01", 0.6)], "then") is None


@pytest.fixture
def before(checkout: Path) -> Workspace:
    """A project whose last commit scored 80% validation accuracy on some images."""
    write_scores(0.8)
    write_json(Path("metrics/shard.run.json"), {"fingerprint": "these images"})
    out = {"path": "metrics/finetune/0.1.json"}
    write_json(Path("dvc.lock"), {"stages": {"finetune@0.1": {"outs": [out]}}})
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    for words in (["add", "-A"], [*identity, "commit", "-qm", "before"]):
        subprocess.run(["git", *words], check=True)
    return Workspace(checkout)


def write_scores(validation: float) -> None:
    numbers = {
        "test_accuracy": {"mean": validation - 0.01, "std": 0.0},
        "validation_accuracy": {"mean": validation, "std": 0.005},
    }
    write_json(Path("metrics/finetune/0.1.json"), {"finetune_layer_1": numbers, "seconds": 3.0})


def test_a_run_that_beats_the_last_commit_tells_by_how_much_and_a_lesser_one_is_silent(
    before: Workspace, receiver: Any
):
    for validation in (0.8, 0.804, 0.83):
        write_scores(validation)
        send_word_if_better(before, ["finetune@0.1"], "amber-owl")
    (word,) = receiver.got
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert word["event"] == "better"
    assert word["compared_with"] == f"commit {head}"
    assert word["better_by"] == pytest.approx(0.03)
    assert word["test_by"] == {"0.1": pytest.approx(0.03)}
    assert word["table"] == ""
    assert word["text"].startswith(f"amber-owl: better than commit {head} by 3.0 points")


def test_the_table_sent_is_that_of_the_run_if_it_made_a_report(before: Workspace, receiver: Any):
    write_scores(0.9)
    for folder in (Path("report"), Path("elsewhere/report")):
        folder.mkdir(parents=True)
        (folder / "report.md").write_text(f"text\n\n| {folder} |\n")
    with contextlib.chdir("elsewhere"):
        send_word_if_better(before, ["finetune@0.1"], "without")
        send_word_if_better(before, ["finetune@0.1", "report"], "with")
        post(word_of("failed", "lost", "Failed", "no images"))
    assert [word["table"] for word in receiver.got] == ["", "| report |", ""]


def test_a_run_on_other_images_is_compared_with_nothing(before: Workspace, receiver: Any):
    write_scores(0.9)
    write_json(Path("metrics/shard.run.json"), {"fingerprint": "other images"})
    send_word_if_better(before, ["finetune@0.1"], "amber-owl")
    assert receiver.got == []


def test_a_registered_version_is_what_later_runs_are_compared_with(
    before: Workspace, receiver: Any
):
    from gto.api import register

    for name, value in (("user.name", "Test"), ("user.email", "test@example.org")):
        subprocess.run(["git", "config", name, value], check=True)
    register(before.root, "finetuned", "HEAD", version="v1.0.0")
    write_scores(0.9)
    subprocess.run(["git", "commit", "-qam", "after"], check=True)
    send_word_if_better(before, ["finetune@0.1"], "amber-owl")
    assert [word["compared_with"] for word in receiver.got] == ["finetuned v1.0.0"]


def test_importing_what_tells_brings_neither_prefect_nor_gto(root: Path):
    code = "import pipeline.notify, sys; print([m for m in ('prefect', 'gto') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
