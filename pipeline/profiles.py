"""Profiles: named, complete sets of params. Switching writes one to params.yaml, nothing else.

params.yaml is the only file that stages read, so dvc sees a switch as it sees any edit. Values
that someone wrote by hand and that are kept nowhere else are never overwritten unasked.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import flat
from stages.errors import UserError
from stages.params import Params, check_params

FOLDER = Path(__file__).parent / "profiles"
ORDER = ("smoke", "quick", "study", "gpu", "imagenet_v1", "imagenet")  # by the time they take


def names() -> list[str]:
    return sorted(
        (file.stem for file in FOLDER.glob("*.yaml")),
        key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name),
    )


def text_of(name: str) -> str:
    """A profile as written.

    Raises:
        UserError: there is no such profile.
    """
    if name not in names():
        raise UserError(f"there is no profile {name}; the profiles are: {', '.join(names())}")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def purpose_of(name: str) -> str:
    """What the profile is for: the comment beside its name."""
    line = next(line for line in text_of(name).splitlines() if line.startswith("profile:"))
    return line.partition("#")[2].strip()


def read_values(path: Path) -> Any:
    """The values of a params file, unchecked; None where there is none that can be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError):
        return None


def listing(current: Any) -> str:
    """A line a profile; the one that params.yaml holds is marked."""
    lines = []
    for name in names():
        mark = "*" if current == yaml.safe_load(text_of(name)) else " "
        lines.append(f"{mark} {name:<11} {purpose_of(name)}")
    return "\n".join(lines)


def switch(name: str, path: Path, *, force: bool = False) -> list[str]:
    """Write a profile to params.yaml, whole or not at all.

    Args:
        name: the profile.
        path: params.yaml.
        force: overwrite values that are kept nowhere else; the old file becomes path.bak.

    Returns:
        A line for each value that is not what it was.

    Raises:
        UserError: no such profile, or the file holds values kept nowhere else.
    """
    text = text_of(name)
    check_params(yaml.safe_load(text), str(FOLDER / f"{name}.yaml"))
    return replace_params(text, path, force=force)


def replace_params(text: str, path: Path, *, force: bool = False) -> list[str]:
    """Write params.yaml, whole or not at all.

    Returns:
        A line for each value that is not what it was.

    Raises:
        UserError: the file holds values kept nowhere else, and force is not given.
    """
    values = yaml.safe_load(text)
    before = read_values(path)
    if not force:
        refuse_to_lose(path, values)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")  # on a full disk the old file stays where it is
    if force and would_be_lost(path, values):
        path.replace(path.with_name(f"{path.name}.bak"))
    partial.replace(path)
    return differences(before, values)


def refuse_to_lose(path: Path, values: Any) -> None:
    """Before these values take the place of those in the file.

    Raises:
        UserError: the file holds values kept nowhere else.
    """
    if would_be_lost(path, values):
        raise UserError(
            f"{path} holds values that are in no profile and in no git commit:\n"
            f"{_nearest_differences(read_values(path))}\n"
            "  Commit it first, or overwrite it with --force (the old one becomes "
            f"{path.name}.bak)."
        )


def would_be_lost(path: Path, values: Any) -> bool:
    """Whether the file holds other values than these, and they are kept nowhere else."""
    before = read_values(path)
    return path.exists() and before != values and not is_kept_elsewhere(path, before)


def is_kept_elsewhere(path: Path, values: Any) -> bool:
    """Whether a profile holds these values, or a commit holds this very file."""
    return any(values == yaml.safe_load(text_of(name)) for name in names()) or _is_in_git(path)


def _is_in_git(path: Path) -> bool:
    folder = path.absolute().parent
    try:
        blob = _git(folder, "hash-object", path.name)
        return bool(_git(folder, "log", "--all", "-1", "--format=%H", f"--find-object={blob}"))
    except (OSError, subprocess.CalledProcessError):
        return False  # no git, no commits yet, not a repository


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def differences(before: Any, after: Mapping[str, Any]) -> list[str]:
    """A line for each key whose value changes; a list counts as one value."""
    old = flat(before) if isinstance(before, Mapping) else {}
    new = flat(after)
    return [
        f"  {key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in [*new, *(key for key in old if key not in new)]
        if old.get(key, ...) != new.get(key, ...)
    ]


def _nearest_differences(values: Any) -> str:
    """What is special about the values: how they differ from the profile nearest to them."""
    found = [differences(yaml.safe_load(text_of(name)), values or {}) for name in names()]
    nearest = min(found, key=len)
    hidden = len(nearest) - 5
    return "\n".join([*nearest[:5], *([f"  and {hidden} more"] if hidden > 0 else [])])


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(none)"


def schema_text() -> str:
    """The JSON schema of params.yaml, as text."""
    return json.dumps(Params.model_json_schema(), indent=2) + "\n"
