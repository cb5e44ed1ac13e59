"""What a run was made of, for its page: commit, params, where, and what was asked for."""

import subprocess
from pathlib import Path

import yaml

from pipeline import profiles
from pipeline.dvc import Workspace
from pipeline.parameters import ChainParameters
from stages.params import PARAMS_FILE

SHOWN_FILES = 8


def name_of_run(parameters: ChainParameters) -> str:
    """What the list of runs calls it: "smoke: 2 overrides, up to report"."""
    words = []
    if parameters.overrides:
        count = len(parameters.overrides)
        words.append(f"{count} override{'s' if count > 1 else ''}")
    if parameters.targets:
        words.append(f"up to {' '.join(parameters.targets)}")
    words += ["all again"] if parameters.force else []
    profile = parameters.profile or profile_in(Path(PARAMS_FILE))
    return f"{profile}: {', '.join(words) or 'the whole chain'}"


def profile_in(file: Path) -> str:
    values = profiles.read_values(file)
    return str(values.get("profile")) if isinstance(values, dict) else "params.yaml"


def what_ran(project: Workspace, workspace: Workspace, parameters: ChainParameters) -> str:
    """The page's account of a run, as Markdown.

    Args:
        project: where it was asked for.
        workspace: where it works; the project itself, or one for its params alone.
        parameters: what was asked for.
    """
    text = (workspace.root / PARAMS_FILE).read_text(encoding="utf-8")
    written = profiles.read_values(project.root / PARAMS_FILE)
    own = workspace.root != project.root
    rows = {
        "Profile": f"`{profile_in(workspace.root / PARAMS_FILE)}`",
        "Stages": ", ".join(f"`{name}`" for name in parameters.targets) or "all",
        "Works in": f"`{workspace.root}`",
        "Run even if unchanged": "yes" if parameters.force else "no",
        "Stages at once": str(parameters.concurrency),
        "Time limit": (
            f"{parameters.time_limit_minutes:g} min" if parameters.time_limit_minutes else "none"
        ),
    }
    lines = [f"| Commit | {commit_line(project.root)} |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    if own:
        changes = profiles.differences(written, yaml.safe_load(text))
        lines += ["", "## Other than in params.yaml", "```", *changes, "```"]
        lines += [
            "The project's params.yaml and results stay as they are. To make these its own:",
            f"```\npython -m pipeline apply {workspace.root.name}\n```",
        ]
    return "\n".join([*lines, "", "## All params", f"```yaml\n{text.rstrip()}\n```"])


def commit_line(root: Path) -> str:
    """The commit, and the files that differ from it; results of runs are not counted."""
    try:
        head = _git(root, "log", "-1", "--format=%h %s").strip()
        changed = _git(root, "status", "--porcelain", "-z", "--untracked-files=normal")
    except (OSError, subprocess.CalledProcessError):
        return "none: not a git repository"
    files = [entry[3:] for entry in changed.split("\0") if entry]
    files = [name for name in files if not name.startswith(("metrics/", "plots/", "dvc.lock"))]
    if not files:
        return f"{_plain(head)}, nothing changed since"
    listed = ", ".join(f"`{name}`" for name in files[:SHOWN_FILES])
    more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
    return f"{_plain(head)}, **with changes** in {listed}{more}"


def _plain(words: str) -> str:
    return words.replace("|", "\\|")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout
