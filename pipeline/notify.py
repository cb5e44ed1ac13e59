"""Word to people: a POST to an address of theirs when a run failed or came out better.

The address is a secret of its receiver, so it comes from the environment and never from params.
The body is JSON; its `text` is one line, which is what chat services show.
"""

import json
import logging
import os
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

from pipeline.artifacts import first_table
from pipeline.committed import Commit
from pipeline.dvc import Workspace
from pipeline.registry import Registry
from pipeline.scores import Score, chosen, scores_in
from stages.errors import StageError
from stages.records import commit as commit_here

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun, State

WEBHOOK = "PIPELINE_WEBHOOK_URL"
WAITS = (1.0, 5.0)  # seconds before each further attempt
TIMEOUT_SECONDS = 10.0
REPORT = Path("report/report.md")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """A run's results against those of an earlier commit on the same data."""

    against: str  # "self-distilled-1-percent v1.2.0" or "commit 1a2b3c4"
    better_by: float  # validation accuracy, mean over label fractions
    noise: float  # deviation over seeds of both, pooled, mean over label fractions
    test_by: dict[str, float]  # test accuracy by label fraction

    @property
    def is_better(self) -> bool:
        """Whether the gain is larger than what another seed would give."""
        return self.better_by > self.noise


def post(content: Mapping[str, Any]) -> bool:
    """Send JSON to $PIPELINE_WEBHOOK_URL where it is set; whether it arrived.

    A receiver that is away costs a run a warning in its log, never its result.
    """
    address = os.environ.get(WEBHOOK)
    if not address:
        return False
    body = json.dumps(content, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json"}
    for wait in (*WAITS, None):
        try:
            request = urllib.request.Request(address, body, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                return True
        except (OSError, ValueError, HTTPException) as error:
            problem = kind_of(error)
            if isinstance(error, HTTPError):
                error.close()
        if wait is not None:
            time.sleep(wait)
    log.warning("no word could be sent to $%s: %s", WEBHOOK, problem)
    return False


def kind_of(error: Exception) -> str:
    """What went wrong, in words that can't hold the address, as an error's own text may."""
    if isinstance(error, HTTPError):
        return f"HTTP Error {error.code}"
    inner = error.reason if isinstance(error, URLError) else error
    return type(inner if isinstance(inner, Exception) else error).__name__


def send_word_of_failure(flow: "Flow[..., Any]", flow_run: "FlowRun", state: "State[Any]") -> None:
    """A hook of the flow; of a crash it runs in the process that served the run."""
    error = state.result(raise_on_failure=False)
    message = str(error) if isinstance(error, StageError) or state.is_failed() else state.message
    event = "crashed" if state.is_crashed() else "failed"
    post(word_of(event, flow_run.name, state.name or event, message or ""))


def send_word_if_better(workspace: Workspace, stages: Sequence[str], run: str) -> None:
    """Compare a run that came to its end, and tell where it is better.

    Args:
        workspace: where it worked.
        stages: of its graph; without the report there is no table to send.
        run: its name.
    """
    if WEBHOOK not in os.environ:
        return
    compared = compared_with_before(workspace, stages)
    if compared is None or not compared.is_better:
        return
    message = (
        f"better than {compared.against} by {100 * compared.better_by:.1f} points of validation "
        f"accuracy ({100 * compared.noise:.1f} is noise between seeds)"
    )
    report = workspace.root / REPORT
    has_table = "report" in stages and report.is_file()
    table = first_table(report.read_text(encoding="utf-8")) if has_table else ""
    post(word_of("better", run, "Completed", message, table, compared))


def word_of(
    event: str,
    run: str,
    state: str,
    message: str,
    table: str = "",
    compared: Comparison | None = None,
) -> dict[str, Any]:
    """What is sent: the run, how it ended, at which commit, its table, and by how much better."""
    return {
        "event": event,
        "run": run,
        "state": state,
        "message": message,
        "commit": commit_here(),
        "table": table,
        "better_by": compared.better_by if compared else None,
        "test_by": compared.test_by if compared else None,
        "compared_with": compared.against if compared else None,
        "text": f"{run}: {message.splitlines()[0] if message else state}",
    }


def compared_with_before(workspace: Workspace, stages: Sequence[str]) -> Comparison | None:
    """The run's results against the newest registered version, or the last commit without one.

    None where there is nothing to compare: no earlier scores, or other images.
    """
    versions = Registry(workspace.root).versions()
    newest = max(versions, key=lambda one: (one.registered, one.version), default=None)
    before = Commit(workspace.root, newest.commit if newest else "HEAD")
    against = f"{newest.name} {newest.version}" if newest else f"commit {before.short}"
    data = read_fingerprint(workspace.root)
    if data is None or data != before.data_fingerprint:
        return None
    ours = [
        score
        for stage in stages
        for content in workspace.metrics(stage).values()
        for score in scores_in(content, stage.partition("@")[2])
    ]
    return compare(ours, before.scores(), against)


def compare(ours: list[Score], theirs: list[Score], against: str) -> Comparison | None:
    """By label fraction, each side's method as validation chooses it."""
    new, old = by_fraction(ours), by_fraction(theirs)
    shared = [fraction for fraction in new if fraction in old]
    if not shared:
        return None

    def mean(of: Callable[[Score, Score], float]) -> float:
        return sum(of(new[fraction], old[fraction]) for fraction in shared) / len(shared)

    return Comparison(
        against=against,
        better_by=mean(lambda now, then: now.validation - then.validation),
        noise=mean(
            lambda now, then: (
                ((now.validation_deviation**2 + then.validation_deviation**2) / 2) ** 0.5
            )
        ),
        test_by={fraction: new[fraction].test - old[fraction].test for fraction in shared},
    )


def by_fraction(scores: list[Score]) -> dict[str, Score]:
    fractions = dict.fromkeys(score.label_fraction for score in scores)
    best = {
        fraction: chosen([score for score in scores if score.label_fraction == fraction])
        for fraction in fractions
    }
    return {fraction: score for fraction, score in best.items() if score is not None}


def read_fingerprint(root: Path) -> str | None:
    """Of the shards that the workspace has now."""
    file = root / "metrics/shard.run.json"
    return json.loads(file.read_text(encoding="utf-8"))["fingerprint"] if file.is_file() else None
