"""`python -m pipeline models`: versions of what the chain made.

    models                              every version with its test accuracy
    models register NAME                a version of NAME as the last commit has it
    models get NAME@v1.0.0 --into DIR   its files, here or on any other clone
    models use NAME@v1.0.0 --stage prod
    models rollback NAME --stage prod   back to the version before

NAME is one of dvc.yaml's `artifacts:`. All of it is git tags and a DVC remote.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.committed import git
from pipeline.dvc import DvcFailed, Workspace
from pipeline.registry import Registry, Version
from stages.errors import UserError

COLUMNS = ("name", "version", "stages", "test accuracy", "commit", "date", "data", "size")


def add_commands(commands: Any) -> None:
    """Add `models` and what follows it to the command line."""
    models = commands.add_parser("models", help="versions of what the chain made")
    models.set_defaults(command=_list, name=None, json=False)
    actions = models.add_subparsers(metavar="ACTION")

    shown = actions.add_parser("list", help="versions with their test accuracy (the default)")
    shown.add_argument("name", nargs="?", help="only this one")
    shown.add_argument("--json", action="store_true", help="for programs")
    shown.set_defaults(command=_list)

    register = actions.add_parser("register", help="make a version, as the last commit has it")
    register.add_argument("name", help="one of dvc.yaml's artifacts")
    register.add_argument("--version", help="like v1.2.3 (default: the next minor one)")
    register.add_argument("--bump", choices=("major", "minor", "patch"), default="minor")
    _add_push(register)
    register.set_defaults(command=_register)

    get = actions.add_parser("get", help="the files of a version")
    get.add_argument("version", metavar="NAME[@VERSION|@STAGE]", help="NAME alone: the newest")
    get.add_argument("--into", type=Path, required=True, help="a folder that does not exist yet")
    get.set_defaults(command=_get)

    use = actions.add_parser("use", help="let a stage such as prod point at a version")
    use.add_argument("version", metavar="NAME[@VERSION|@STAGE]")
    use.add_argument("--stage", required=True)
    _add_push(use)
    use.set_defaults(command=_use)

    back = actions.add_parser("rollback", help="let a stage point where it pointed before")
    back.add_argument("name")
    back.add_argument("--stage", required=True)
    _add_push(back)
    back.set_defaults(command=_roll_back)


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--push", action="store_true", help="send the tags to git's origin, too")


def _list(asked: argparse.Namespace) -> int:
    registry = _registry()
    versions = registry.versions(asked.name)
    if asked.json:
        print(json.dumps([asdict(one) for one in versions], indent=1))
        return 0
    if versions:
        print(table([COLUMNS, *map(row, versions)]))
    registered = {one.name for one in versions}
    left = [name for name in registry.names() if name not in registered]
    if asked.name is None and left:
        print(f"no version yet of: {', '.join(left)}")
        print("make one with: python -m pipeline models register NAME")
    elif not versions:
        print(f"no version yet of {asked.name}")
    return 0


def _register(asked: argparse.Namespace) -> int:
    registry, workspace = _registry(), Workspace.here()
    path = registry.path_to_register(asked.name)
    stage = registry.stage_of(path)
    if stage not in workspace.graph():  # dvc.lock keeps what earlier params made
        raise UserError(
            f"{asked.name} is {path}, of stage {stage}, which params.yaml does not ask for now.\n"
            "  Register what this run made, or write that label fraction into "
            "finetune.label_fractions\n  and bring it up to date: dvc repro"
        )
    remote = workspace.default_remote()
    if remote is not None:  # first, so that a version that others see can be fetched
        is_there, said = workspace.push([path], lambda _: None)
        if not is_there:
            raise UserError(
                f"no version was made, for {path} can't be copied to the remote {remote}:\n{said}"
            )
    one = registry.register(asked.name, asked.version, asked.bump)
    print(f"registered {one.name} {one.version} at commit {one.commit[:7]}{_scored(one)}")
    same = [old.version for old in registry.versions(one.name) if old.out == one.out]
    if len(same) > 1:
        print(f"the same files as {', '.join(same[1:])}")
    print(
        f"its {size(one)} are in the remote {remote}"
        if remote
        else "its files are on this machine only: dvc remote add --default NAME URL, then dvc push"
    )
    return _push_tags(registry, asked, one.name)


def _get(asked: argparse.Namespace) -> int:
    if asked.into.exists():
        raise UserError(f"{asked.into} exists.\n  Name a folder that does not, or remove it.")
    one = _registry().find(asked.version)
    workspace = Workspace.here()
    try:
        workspace.fetch(one.out, asked.into)
    except DvcFailed as error:
        raise UserError(
            f"{one.name} {one.version} can't be fetched:\n{error}\n"
            f"  This clone's remote is {workspace.default_remote() or 'not set'}; "
            "where the version was registered, dvc push sends it there."
        ) from None
    print(f"{one.name} {one.version} is in {asked.into} ({size(one)}){_scored(one)}")
    return 0


def _use(asked: argparse.Namespace) -> int:
    registry = _registry()
    one = registry.assign(asked.version, asked.stage)
    print(f"{asked.stage} of {one.name} is now {one.version}{_scored(one)}")
    return _push_tags(registry, asked, one.name)


def _roll_back(asked: argparse.Namespace) -> int:
    registry = _registry()
    one = registry.roll_back(asked.name, asked.stage)
    print(f"{asked.stage} of {one.name} is {one.version} again{_scored(one)}")
    return _push_tags(registry, asked, one.name)


def _push_tags(registry: Registry, asked: argparse.Namespace, name: str) -> int:
    if asked.push:
        registry.push_tags(name)
        print("origin has its tags")
    else:
        print("others see it after: git push origin --tags")
    return 0


def _registry() -> Registry:
    root = Workspace.here().root
    git(root, "rev-parse", "HEAD")  # where there is none, gto has no words for it
    return Registry(root)


def row(one: Version) -> tuple[str, ...]:
    """One line of the table, in the order of COLUMNS."""
    scored = f"{one.score} ({one.score.method})" if one.score else "-"
    return (
        *(one.name, one.version, ", ".join(one.stages) or "-", scored),
        *(one.commit[:7], one.registered[:10], (one.data or "-")[:8], size(one)),
    )


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    )


def size(one: Version) -> str:
    n_bytes = one.out.get("size", 0)
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes} bytes"


def _scored(one: Version) -> str:
    return f", test accuracy {one.score} ({one.score.method})" if one.score else ""
