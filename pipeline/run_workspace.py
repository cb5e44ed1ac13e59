"""A run with params of its own works in a checkout of its own: runs/workspaces/NAME.

Why not a dvc experiment: `dvc exp run` brings the whole graph up to date as one command, in a
temporary copy whose working state is gone when it ends, so that neither the tasks of the page nor
a resume would be left. This one is a git worktree of the current commit with the uncommitted
changes on top, named by its params: the same params come back to the same place and continue.
It shares dvc's cache and starts with the project's products, so that what the params leave as it
is there is not computed again.
"""

import filecmp
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pipeline import profiles
from pipeline.dvc import Workspace
from pipeline.holder import WorkspaceBusy, hold
from stages.errors import UserError
from stages.params import PARAMS_FILE

FOLDER = Path("runs/workspaces")
RESULTS = ("metrics/", "plots/", "dvc.lock", "params.yaml")  # a workspace has its own of these
DOWNLOADS = Path("data/raw")
SHOWN_CHANGES = 4  # of a workspace's params, where several are listed
PROFILE = re.compile(r"\w[\w.-]*")


def workspace_of_params(project: Workspace, text: str) -> Workspace:
    """The workspace of these params, made or brought to the project's current code.

    Args:
        project: where the run was asked for.
        text: the run's params.yaml.

    Raises:
        UserError: the project is not a git repository with a commit, or the profile's name
            can't be that of a folder.
    """
    values = yaml.safe_load(text)
    root = project.root / FOLDER / folder_name(values)
    is_new = not (root / ".git").exists()
    bring_code(project.root, root, values)
    (root / PARAMS_FILE).write_text(text, encoding="utf-8")
    workspace = Workspace(root)
    workspace.share_cache(project)
    if is_new:  # later it has products of its own
        workspace.bring_products()
    return workspace


def folder_name(values: Any) -> str:
    """Of the workspace of these params: the profile they started from, and their digest."""
    profile = str(values.get("profile", "params"))
    if PROFILE.fullmatch(profile) is None:
        raise UserError(
            f"profile: {profile!r} can't name the run's folder in {FOLDER}.\n"
            "  Write letters, digits, dashes and dots, the first a letter or a digit."
        )
    return f"{profile}-{hashlib.sha256(repr(values).encode()).hexdigest()[:8]}"


def bring_code(project: Path, root: Path, values: Any) -> None:
    """The project's files as they are now, committed or not; results there stay what they are.

    What the params name and git does not know, such as a folder of images, is linked.
    """
    try:
        head = git(project, "rev-parse", "--verify", "HEAD^{commit}").strip()
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{project} has no git commit, and a run with params of its own works in a worktree "
            "of one.\n  git init, git add --all, git commit; or write the values to params.yaml."
        ) from None
    if not (root / ".git").exists():
        git(project, "worktree", "prune")
        git(project, "worktree", "add", "--force", "--detach", "--no-checkout", str(root), head)
    git(root, "reset", "--quiet", head)  # moves HEAD and index; files are copied below
    inputs = inputs_of(project, root, values)
    wanted = {
        name
        for name in files_in(project)
        if not name.startswith("runs/") and not is_in(name, inputs)
    }
    for name in sorted(wanted):
        here, there = project / name, root / name
        is_kept = (name.startswith(RESULTS) and there.exists()) or is_linked(there, root)
        if not is_kept and not (there.is_file() and filecmp.cmp(here, there, shallow=False)):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(here, there)
    for name in set(files_in(root)) - wanted:
        if not name.startswith(RESULTS) and not is_linked(root / name, root):
            (root / name).unlink()
            remove_empty((root / name).parent, root)
    for path in inputs:
        if not (root / path).exists():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to((project / path).absolute())


def files_in(folder: Path) -> Iterator[str]:
    """What git tracks there or would add."""
    listed = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return (name for name in listed.split("\0") if name and (folder / name).is_file())


def inputs_of(project: Path, root: Path, values: Any) -> list[Path]:
    """What params name by a relative path beside the project's code, and downloads.

    Without what would have to be linked outside of the project's runs/, from `root`.
    """
    (project / DOWNLOADS).mkdir(parents=True, exist_ok=True)
    tracked = [Path(name) for name in git(project, "ls-files", "-z").split("\0") if name]
    code = {path for name in tracked for path in (name, *name.parents)}
    named = [Path(os.path.normpath(text)) for text in texts_in(values) if text]
    return [
        path
        for path in dict.fromkeys([DOWNLOADS, *named])
        if path not in code
        and (project / path).exists()
        and Path(os.path.normpath(root / path)).is_relative_to(project / "runs")
        and not path.is_absolute()
    ]


def is_in(name: str, folders: Collection[Path]) -> bool:
    path = Path(name)
    return path in folders or any(folder in path.parents for folder in folders)


def is_linked(path: Path, root: Path) -> bool:
    """Whether it is a link, or lies behind one: then it is the user's own."""
    return path.is_symlink() or not path.parent.resolve().is_relative_to(root.resolve())


def remove_empty(folder: Path, root: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def texts_in(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for inner in values.values() if isinstance(values, dict) else values:
            yield from texts_in(inner)


def names_of(project: Workspace) -> list[str]:
    """The workspaces there are, the one used last first."""
    found = [path.parent for path in (project.root / FOLDER).glob("*/params.yaml")]
    return [path.name for path in sorted(found, key=used_at, reverse=True)]


def listing(project: Workspace) -> str:
    """The workspaces there are, for people: what is other than in params.yaml, and since when."""
    written = profiles.read_values(project.root / PARAMS_FILE)
    lines = []
    for name in names_of(project):
        root = project.root / FOLDER / name
        changes = profiles.differences(written, profiles.read_values(root / PARAMS_FILE))
        used = datetime.fromtimestamp(used_at(root)).astimezone()
        lines += [f"{name}  {used:%Y-%m-%d %H:%M}", *changes[:SHOWN_CHANGES]]
        if len(changes) > SHOWN_CHANGES:
            lines.append(f"  and {len(changes) - SHOWN_CHANGES} more")
    return "\n".join(lines)


def used_at(root: Path) -> float:
    lock = root / "dvc.lock"
    return (lock if lock.is_file() else root / PARAMS_FILE).stat().st_mtime


def apply(project: Workspace, name: str, *, force: bool = False) -> list[str]:
    """Make a run's params and results the project's own.

    Args:
        project: where to.
        name: of the run's workspace.
        force: even over params, or over products, that are kept nowhere else.

    Returns:
        A line for each param whose value is not what it was.

    Raises:
        UserError: there is no such workspace, another run is on, or something would be lost;
            then everything is as it was.
    """
    if name not in names_of(project):
        known = ", ".join(names_of(project)) or "none yet"
        raise UserError(f"there is no run {name} in {FOLDER}; there are: {known}")
    workspace = Workspace(project.root / FOLDER / name)
    text = (workspace.root / PARAMS_FILE).read_text(encoding="utf-8")
    try:
        with hold(project.root, f"python -m pipeline apply {name}", wait=False):
            if not force:  # whatever refuses comes before the first change
                profiles.refuse_to_lose(project.root / PARAMS_FILE, yaml.safe_load(text))
                refuse_to_lose_results(project.root)
            project.take_results(workspace, force=force)
            return profiles.replace_params(text, project.root / PARAMS_FILE, force=force)
    except WorkspaceBusy as busy:
        raise UserError(f"{busy}.\n  Apply the run when that one has ended.") from None


def refuse_to_lose_results(root: Path) -> None:
    """Raises UserError where metrics, plots or dvc.lock are not as committed."""
    changed = git(root, "status", "--porcelain", "--", "dvc.lock", "metrics", "plots").rstrip()
    if changed:
        raise UserError(
            f"these results of the project are in no git commit, and would be lost:\n{changed}\n"
            "  Commit them first: git add dvc.lock metrics plots && git commit\n"
            "  or overwrite them with --force."
        )


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout
