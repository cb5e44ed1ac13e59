"""Versions of what the chain makes, as git tags in gto's form; no service holds them.

A version NAME@v1.2.0 is a tag on a commit. That commit's dvc.lock says which bytes the name stood
for, its metrics/ what they scored, and a DVC remote holds them. A stage is a tag as well:
NAME#prod#3 says which version `prod` points at from then on, so going back is one more tag.
"""

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.committed import Commit, git
from pipeline.scores import Score
from stages.errors import UserError

VERSION = re.compile(r"v\d+(?:\.\d+){2}[-+.\w]*")
# What must be as committed when a version is made, for the tag names a commit.
IN_THE_COMMIT = ("dvc.yaml", "dvc.lock", "params.yaml", "metrics")


@dataclass(frozen=True)
class Version:
    """One registered version of one artifact."""

    name: str
    version: str
    stages: list[str]  # that point at it now
    commit: str
    registered: str  # ISO 8601, UTC
    path: str
    out: dict[str, Any]  # its entry in dvc.lock: md5, size in bytes and the like
    data: str | None  # fingerprint of the shards
    score: Score | None


@dataclass(frozen=True)
class Registry:
    """The artifacts that dvc.yaml names, and their versions."""

    root: Path

    def names(self) -> list[str]:
        """What can be registered."""
        return list(Commit(self.root).artifacts)

    def versions(self, name: str | None = None) -> list[Version]:
        """Every version, by name, newest first."""
        from gto.api import show

        with _told_by_gto():
            names = [known for known in sorted(show(self.root)) if name in (None, known)]
            found = [
                (shown, self._stages(artifact))
                for artifact in names
                for shown in show(self.root, name=artifact)
            ]
        made = [
            self._version(
                shown["artifact"],
                shown["version"],
                shown["commit_hexsha"],
                f"{shown['activated_at']:%Y-%m-%d %H:%M:%S}",
                [stage for stage, at in stages.items() if at[-1] == shown["version"]],
            )
            for shown, stages in found
        ]
        return sorted(made, key=lambda one: (one.name, *(-part for part in _parts(one.version))))

    def find(self, asked: str) -> Version:
        """The version that NAME, NAME@v1.0.0 or NAME@STAGE means; NAME alone: the newest.

        Raises:
            UserError: there is none, with those that there are.
        """
        name, _, which = asked.partition("@")
        versions = self.versions(name)
        if not versions:
            raise UserError(
                f"no version of {name} is registered here.\n"
                f"  Registered: {_listed(dict.fromkeys(one.name for one in self.versions()))}.\n"
                "  Versions are git tags; those of another clone come with: git fetch --tags"
            )
        for one in versions:
            if not which or which == one.version or which in one.stages:
                return one
        has = _listed(_with_stages(one) for one in versions)
        raise UserError(
            f"{name} has no version and no stage {which}; it has: {has}.\n"
            "  Versions are git tags; those of another clone come with: git fetch --tags"
        )

    def path_to_register(self, name: str) -> str:
        """Where an artifact lies whose version can be made from the current commit.

        Raises:
            UserError: no such artifact, or the workspace is not as committed.
        """
        now = Commit(self.root)
        if name not in now.artifacts:
            raise UserError(
                f"dvc.yaml names no artifact {name}; it names: {_listed(now.artifacts)}"
            )
        changed = git(self.root, "status", "--porcelain", "--", *IN_THE_COMMIT)
        if changed:
            raise UserError(
                f"a version is a commit, and these are not as committed:\n{changed}\n"
                "  Commit them: git add dvc.yaml dvc.lock params.yaml metrics plots && git commit"
            )
        path = now.artifacts[name]
        if now.out(path) is None:
            raise UserError(f"the commit's dvc.lock has no {path} yet.\n  Make it with: dvc repro")
        return path

    def stage_of(self, path: str) -> str | None:
        """The stage that made it, as the current commit's dvc.lock has it."""
        return Commit(self.root).stage_of(path)

    def register(self, name: str, version: str | None, bump: str = "minor") -> Version:
        """Make a version of an artifact as the current commit has it.

        Args:
            name: as in dvc.yaml's `artifacts:`.
            version: v1.2.3; None: the last one, raised by `bump`; the first is v1.0.0.
            bump: "major", "minor" or "patch".

        Raises:
            UserError: it can't be registered now, or the commit or the version is taken.
        """
        from gto.api import register

        self.path_to_register(name)
        if version is None:
            has = self.versions(name)
            version = raised(has[0].version, bump) if has else "v1.0.0"
        elif VERSION.fullmatch(version) is None:
            raise UserError(f"a version is written v1.2.3 (you wrote {version})")
        with _told_by_gto():
            register(self.root, name, "HEAD", version=version)
        return self.find(f"{name}@{version}")

    def assign(self, asked: str, stage: str) -> Version:
        """Let a stage such as "prod" point at a version: one more tag.

        Raises:
            UserError: no such version, or the stage points there already.
        """
        from gto.api import assign

        if re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", stage) is None:
            raise UserError(
                f"a stage is small letters, digits and dashes, like prod (you wrote {stage})"
            )
        one = self.find(asked)
        if stage in one.stages:
            raise UserError(f"{stage} of {one.name} is {one.version} already")
        with _told_by_gto():
            # By force, for gto takes an earlier assignment of this version as still in effect.
            assign(self.root, one.name, stage, version=one.version, force=True)
        return self.find(f"{one.name}@{one.version}")

    def roll_back(self, name: str, stage: str) -> Version:
        """Let a stage point at the version that it pointed at before the current one.

        Repeated, it goes back further, and never forward to what was rolled back.

        Raises:
            UserError: there is nothing before it.
        """
        self.find(name)
        at = self._stages(name).get(stage, [])
        before = [version for version in at[: at.index(at[-1])] if version] if at else []
        if not before:
            what = f"is {at[-1]}, its first version" if at else "was never set"
            raise UserError(f"{stage} of {name} {what}: there is nothing to go back to")
        return self.assign(f"{name}@{before[-1]}", stage)

    def tags(self, name: str) -> list[str]:
        """Every tag of an artifact: what `git push` needs to be told."""
        listed = git(self.root, "tag", "--list", f"{name}@*", f"{name}#*")
        return listed.split()

    def push_tags(self, name: str, to: str = "origin") -> None:
        """Send an artifact's tags to another repository.

        Raises:
            UserError: git can't; with what it said.
        """
        git(self.root, "push", "--quiet", to, *(f"refs/tags/{tag}" for tag in self.tags(name)))

    def _stages(self, name: str) -> dict[str, list[str | None]]:
        """What each stage has pointed at, in the order of its tags' numbers; None: nothing."""
        lines = git(
            self.root, "for-each-ref", "--format=%(refname:short)\t%(*objectname)", "refs/tags"
        )
        # A tag without a message names its commit itself, so there is nothing after the tab.
        pairs = (line.partition("\t") for line in lines.splitlines())
        commits = {tag: commit for tag, _, commit in pairs}
        versions = {
            commit: tag.partition("@")[2]
            for tag, commit in commits.items()
            if VERSION.fullmatch(tag.removeprefix(f"{name}@"))
        }
        numbered: dict[str, dict[int, str | None]] = {}
        for tag, commit in commits.items():
            found = re.fullmatch(rf"{re.escape(name)}#([^#!]+)(!?)#(\d+)", tag)
            if found:
                taken_back = found[2] == "!"
                version = None if taken_back else versions.get(commit)
                numbered.setdefault(found[1], {})[int(found[3])] = version
        return {
            stage: [tags[number] for number in sorted(tags)] for stage, tags in numbered.items()
        }

    def _version(
        self, name: str, version: str, commit: str, registered: str, stages: list[str]
    ) -> Version:
        then = Commit(self.root, commit)
        path = then.artifacts.get(name, "")
        return Version(
            name=name,
            version=version,
            stages=stages,
            commit=commit,
            registered=registered,
            path=path,
            out=then.out(path) or {},
            data=then.data_fingerprint,
            score=then.score_of(path),
        )


def raised(version: str, bump: str) -> str:
    """The version after this one: v1.4.2 by "minor" gives v1.5.0."""
    major, minor, patch = _parts(version)
    after = {
        "major": (major + 1, 0, 0),
        "minor": (major, minor + 1, 0),
        "patch": (major, minor, patch + 1),
    }
    return "v{}.{}.{}".format(*after[bump])


def _parts(version: str) -> tuple[int, int, int]:
    major, minor, patch = re.findall(r"\d+", version)[:3]
    return int(major), int(minor), int(patch)


def _with_stages(one: Version) -> str:
    return f"{one.version} ({', '.join(one.stages)})" if one.stages else one.version


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


@contextmanager
def _told_by_gto() -> Generator[None]:
    """What gto refuses is the user's to mend, and it says why."""
    from gto.exceptions import GTOException

    try:
        yield
    except GTOException as error:
        raise UserError(str(error)) from None
