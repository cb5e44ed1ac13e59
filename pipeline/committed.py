"""The chain's results as a commit has them: read from git, whatever the workspace holds now."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pipeline.dvc import is_metrics_file
from pipeline.scores import Score, chosen, scores_in
from stages.errors import UserError


@dataclass(frozen=True)
class Commit:
    """A commit of the project.

    Attributes:
        root: a checkout of the project; its files are not looked at.
        name: anything that git takes for a commit.
    """

    root: Path
    name: str = "HEAD"

    @property
    def short(self) -> str:
        return git(self.root, "rev-parse", "--short", self.name)

    def file(self, path: str) -> str | None:
        """A file's text; None where the commit has none of that name."""
        done = _run_git(self.root, "show", f"{self.name}:./{path}")
        return done.stdout if done.returncode == 0 else None

    def json(self, path: str) -> dict[str, Any]:
        return json.loads(self.file(path) or "{}")

    @cached_property
    def artifacts(self) -> dict[str, str]:
        """Paths by the names that dvc.yaml gives them."""
        content = yaml.safe_load(self.file("dvc.yaml") or "") or {}
        return {name: about["path"] for name, about in content.get("artifacts", {}).items()}

    @cached_property
    def stages(self) -> Mapping[str, Any]:
        """What dvc.lock says of each stage that has run."""
        return (yaml.safe_load(self.file("dvc.lock") or "") or {}).get("stages", {})

    def out(self, path: str) -> dict[str, Any] | None:
        """What dvc.lock says of something that a stage made: md5, size."""
        outs = (out for stage in self.stages.values() for out in stage.get("outs", []))
        return next((out for out in outs if out["path"] == path), None)

    def stage_of(self, path: str) -> str | None:
        """The stage that made it."""
        for name, about in self.stages.items():
            if any(out["path"] == path for out in about.get("outs", [])):
                return name
        return None

    @property
    def data_fingerprint(self) -> str | None:
        """Of the shards."""
        return self.json("metrics/shard.run.json").get("fingerprint")

    def scores(self) -> list[Score]:
        """Every method at every label fraction."""
        return [score for stage in self.stages for score in self._scores_of(stage)]

    def score_of(self, path: str) -> Score | None:
        """What a product scored: its stage's methods, the one that validation chooses.

        Features without a classifier have the linear probe's, at the fraction with most labels.
        """
        for stage, about in self.stages.items():
            if path in {out["path"] for out in about.get("outs", [])}:
                own = chosen(self._scores_of(stage))
                if own is not None:
                    return own
        probes = [score for score in self.scores() if score.method == "linear_probe"]
        return max(probes, key=lambda score: self._labels(score.label_fraction), default=None)

    def _scores_of(self, stage: str) -> list[Score]:
        files = [out["path"] for out in self.stages[stage].get("outs", [])]
        fraction = stage.partition("@")[2]
        numbers = [self.json(file) for file in files if is_metrics_file(file)]
        return [score for content in numbers for score in scores_in(content, fraction)]

    def _labels(self, fraction: str) -> int:
        return self.json(f"metrics/subsets/{fraction}.json").get("labels", 0)


def git(root: Path, *words: str) -> str:
    """What a git command prints.

    Raises:
        UserError: it did not work; with what git said.
    """
    done = _run_git(root, *words)
    if done.returncode:
        raise UserError(f"git {words[0]} did not work: {done.stderr.strip()}")
    return done.stdout.rstrip()


def _run_git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, encoding="utf-8", check=False
        )
    except FileNotFoundError:
        raise UserError("git is not on PATH, and versions are git tags.\n  Install git") from None
