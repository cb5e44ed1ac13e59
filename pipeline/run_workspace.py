"""A run with params of its own works in a checkout of its own: runs/workspaces/NAME.

Why not a dvc experiment: `dvc exp run` brings the whole graph up to date as one command, in a
temporary copy whose working state is gone when it ends, so that neither the tasks of the page nor
a resume would be left. This one is a git worktree of the current commit with the uncommitted
changes on top, named by its params: the same params come back to the same place and continue.
It shares dvc's cache, so what has been computed anywhere is not computed again.
"""

import filecmp
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline import profiles
from pipeline.dvc import Workspace
from stages.errors import UserError
from stages.params import PARAMS_FILE

FOLDER = Path("runs/workspaces")
RESULTS = ("metrics/", "plots/", "dvc.lock", "params.yaml")  # a workspace has its own of these
DOWNLOADS = Path("data/raw")


def workspace_of_params(project: Workspace, text: str) -> Workspace:
    """The workspace of these params, made or brought to the project's current code.

    Args:
        project: where the run was asked for.
        text: the run's params.yaml.

    Raises:
        UserError: the project is not a git repository with a commit.
    """
    values = yaml.safe_load(text)
    digest = hashlib.sha256(repr(values).encode()).hexdigest()[:8]
    root = project.root / FOLDER / f"{values.get('profile', 'params')}-{digest}"
    bring_code(project.root, root)
    (root / PARAMS_FILE).write_text(text, encoding="utf-8")
    link_inputs(project.root, root, values)
    workspace = Workspace(root)
    workspace.share_cache(project)
    return workspace


def bring_code(project: Path, root: Path) -> None:
    """The project's files as they are now, committed or not; results there stay what they are."""
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
    wanted = {name for name in files_in(project) if not name.startswith("runs/")}
    for name in sorted(wanted):
        here, there = project / name, root / name
        is_kept = name.startswith(RESULTS) and there.exists()
        if not is_kept and not (there.is_file() and filecmp.cmp(here, there, shallow=False)):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(here, there)
    for name in set(files_in(root)) - wanted:
        if not name.startswith(RESULTS) and not (root / name).is_symlink():
            (root / name).unlink()


def files_in(folder: Path) -> Iterator[str]:
    """What git tracks there or would add."""
    listed = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return (name for name in listed.split("\0") if name and (folder / name).is_file())


def link_inputs(project: Path, root: Path, values: Any) -> None:
    """Folders beside the project's code that params name by a relative path, and downloads."""
    (project / DOWNLOADS).mkdir(parents=True, exist_ok=True)
    named = [Path(text) for text in texts_in(values) if text and not Path(text).is_absolute()]
    for path in [DOWNLOADS, *named]:
        inside = (project / path).resolve().is_relative_to(project.resolve())
        if inside and (project / path).exists() and not (root / path).exists():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to((project / path).absolute())


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
        UserError: there is no such workspace, or something would be lost.
    """
    if name not in names_of(project):
        known = ", ".join(names_of(project)) or "none yet"
        raise UserError(f"there is no run {name} in {FOLDER}; there are: {known}")
    workspace = Workspace(project.root / FOLDER / name)
    text = (workspace.root / PARAMS_FILE).read_text(encoding="utf-8")
    changes = profiles.replace_params(text, project.root / PARAMS_FILE, force=force)
    project.take_results(workspace, force=force)
    return changes


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout
