"""The run's page on Prefect: everything here may fail, and no training stops for it."""

import os
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from pipeline.artifacts import slug, table_rows
from pipeline.dvc import Workspace
from pipeline.parameters import ChainParameters
from pipeline.progress import duration, read_progress
from pipeline.report.results import Study
from pipeline.results_page import answer_of, pictures_of
from pipeline.run_workspace import FOLDER
from pipeline.what_ran import what_ran
from stages.params import PARAMS_FILE, load_params

REPORT_URL = "PIPELINE_REPORT_URL"  # set by `serve`, which also answers there
MOVES_EVERY_SECONDS = 3.0
PAUSE_SECONDS = 30.0  # while the server does not answer, for each try holds up the stage's log


class Page:
    """What a run shows; a server that is down is mentioned in the log, once, and no more."""

    def __init__(self) -> None:
        self.failed = False

    def show(self, publish: Callable[[], Any]) -> Any:
        """Try it; None where it failed."""
        try:
            shown = publish()
        except Exception as error:  # whatever it is: hours of training weigh more than a picture
            if not self.failed:
                get_run_logger().warning("the page could not be brought up to date: %s", error)
            self.failed = True
            return None
        self.failed = False
        return shown

    def what_ran(
        self, project: Workspace, workspace: Workspace, parameters: ChainParameters
    ) -> None:
        self.show(
            lambda: create_markdown_artifact(
                key="what-was-run", markdown=what_ran(project, workspace, parameters)
            )
        )

    def results_of(self, workspace: Workspace, stage: str) -> None:
        """The numbers of a finished stage, and its pictures."""
        self.show(lambda: self._table(workspace, stage))
        self.show(lambda: self._pictures(workspace, stage))

    def answer(self, workspace: Workspace) -> None:
        """What the whole chain came to."""
        self.show(lambda: self._answer(workspace))

    def _table(self, workspace: Workspace, stage: str) -> None:
        rows = table_rows(workspace.metrics(stage))
        if rows:
            create_table_artifact(
                key=slug("metrics", stage), table=rows, description=f"# Numbers of {stage}"
            )

    def _pictures(self, workspace: Workspace, stage: str) -> None:
        shown = pictures_of(study_of(workspace), stage)
        if shown:
            create_markdown_artifact(
                key=slug("pictures", stage), markdown=shown, description=f"# {stage}"
            )

    def _answer(self, workspace: Workspace) -> None:
        study = study_of(workspace)
        if study.results:
            create_markdown_artifact(key="results", markdown=answer_of(study, url_of(workspace)))


class StageBar:
    """A bar on the page that moves while a stage trains.

    Args:
        page: of the run.
        workspace: where the stage runs.
        stage: its name in the graph.
    """

    def __init__(self, page: Page, workspace: Workspace, stage: str) -> None:
        self.page, self.workspace, self.stage = page, workspace, stage
        self.begun = self.moved_at = time.time()
        self.shown: UUID | None = None
        self.percent, self.line = 0.0, ""

    def tick(self) -> None:
        """Called often; looks at the trainings every few seconds."""
        now = time.time()
        pause = PAUSE_SECONDS if self.page.failed else MOVES_EVERY_SECONDS
        if now - self.moved_at < pause:
            return
        self.moved_at = now
        self.page.show(self._look)

    def _look(self) -> None:
        seen = read_progress(self.workspace.progress_of(self.stage))
        if seen is not None and seen.line != self.line:
            self.percent, self.line = round(100 * seen.share, 1), seen.line
            self._move(seen.line)

    def end(self, status: str) -> None:
        """Say how it ended, if there was anything to show."""
        if self.shown is None:
            return
        took = f"{status} after {duration(time.time() - self.begun)}"
        if status == "done":
            self.percent = 100.0
        words = took if status == "done" else f"{took}; {self.line}"
        self.page.show(lambda: self._move(words))

    def _move(self, words: str) -> None:
        if self.shown is None:
            key = slug("progress", self.stage)
            created: Any = create_progress_artifact(self.percent, key=key, description=words)
            self.shown = created
        else:
            update_progress_artifact(self.shown, progress=self.percent, description=words)


def url_of(workspace: Workspace) -> str | None:
    """Where `serve` gives out a workspace's report; None where no `serve` is above us."""
    served = os.environ.get(REPORT_URL)
    if served is None:
        return None
    is_own = workspace.root.parent.name == FOLDER.name
    return f"{served}/{workspace.root.name}/" if is_own else f"{served}/"


def study_of(workspace: Workspace) -> Study:
    return Study(workspace.root, load_params(workspace.root / PARAMS_FILE))
