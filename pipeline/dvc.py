"""The bridge to dvc: the only file that spells a dvc command or reads its output.

dvc decides what is out of date; we ask it, start it and say what it did. Its own exit code says
little (255 whatever the stage's code was), so the stage's code is read from its error line.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal

import yaml

from pipeline import processes
from stages.errors import INTERRUPTED, UserError
from stages.params import PARAMS_FILE
from stages.records import PROGRESS_FOLDER, read_json

TAIL_LINES = 15  # of a failed stage, passed on in its message
LOCK = "dvc.lock"
LOGS = Path("runs/logs")  # a file for each stage, with all it ever printed under a run
KEPT_LINES = 400  # of a stage's output; what dvc says stands at its beginning and end
DVC_FAILED = 1  # dvc failed before or after the stage ran, so there is no code of the stage's own
# The Python that runs us has the right dvc; and two commands at once wait instead of failing.
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")

# It does not wait for files that another command uses, so we do, asking every so many seconds.
SHORTEST_WAIT, LONGEST_WAIT = 2.0, 30.0
READ_AGAIN = (0.2, 0.2, 0.2)  # seconds before each further look at a dvc.lock that is half written

# What is fetched aside belongs to no git repository, and shares no bytes with the cache.
OF_A_COPY = "core.no_scm=true\ncache.type=copy\n"

# Some shells between dvc and a stage end themselves by the Ctrl-C that the stage heard as well.
_CTRL_C = {-signal.SIGINT, 128 + signal.SIGINT}
_EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)")
_RAN = re.compile(r"Running stage '([^']+)'")
# What dvc tells a person who typed the command; a run sends its results itself.
_ADVICE = re.compile(
    r"To (track the changes with git|enable auto staging), run:"
    r"|\s+(git add|dvc config) |Use `dvc push`"
)
_MISSING = "do not exist neither locally nor on remote"
_IN_USE = re.compile(r"is busy, it is being blocked by:")
_EDGE = re.compile(r'\s*"(?P<first>[^"]+)"(?:\s*->\s*"(?P<second>[^"]+)")?\s*;?\s*$')

Graph = dict[str, list[str]]


@dataclass(frozen=True)
class StageOutcome:
    """What bringing one stage up to date came to."""

    stage: str
    status: Literal["ran", "cached", "failed"]
    exit_code: int  # the stage's own; 0 unless it failed
    seconds: float
    message: str = ""  # the last lines of a failed stage
    same_products: bool = False  # what it made is what was there, so those after it need not run


class DvcFailed(Exception):
    """A dvc command that only looks did not work; holds what dvc said."""


@dataclass(frozen=True)
class Workspace:
    """A checkout with a dvc.yaml in it."""

    root: Path

    @classmethod
    def here(cls) -> "Workspace":
        """The current folder.

        Raises:
            UserError: it holds no dvc.yaml.
        """
        root = Path.cwd()
        if not (root / "dvc.yaml").is_file():
            raise UserError(
                f"there is no dvc.yaml in {root}.\n  Run this from the project's root folder."
            )
        return cls(root)

    def graph(self) -> Graph:
        """Every stage with the stages it directly follows, in an order that can be run.

        Raises:
            UserError: dvc can't read dvc.yaml or params.yaml.
        """
        try:
            return read_dot(self._answer(["dag", "--dot"]))
        except DvcFailed as error:
            raise UserError(
                f"dvc can't read the graph in {self.root / 'dvc.yaml'}:\n{error}"
            ) from None

    def changed(self) -> set[str] | None:
        """The stages that dvc finds out of date by themselves; None where it can't say now.

        A stage that only follows an out-of-date one is not named: whether it has to run shows
        when that one has.
        """
        try:
            return set(json.loads(self._answer(["status", "--json"])))
        except (DvcFailed, ValueError):
            return None  # for instance while another dvc command holds a path

    def reproduce(
        self,
        stage: str,
        on_line: Callable[[str], None],
        on_tick: Callable[[], None] = lambda: None,
        *,
        force: bool = False,
    ) -> StageOutcome:
        """Bring one stage up to date, those before it taken as they are.

        Waits while another dvc command, such as one typed by hand, uses its files.

        Args:
            stage: its name in the graph, like "finetune@0.01".
            on_line: called with every line of the stage and of dvc, as it comes.
            on_tick: called every moment while it runs.
            force: run it even if nothing changed.
        """
        started = time.monotonic()
        options = ["--force"] if force else []
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        command = ["repro", "--single-item", *options, stage]
        made_before = read_lock(self.root).get(stage, {}).get("outs")
        shutil.rmtree(self.progress_of(stage), ignore_errors=True)
        progress = {PROGRESS_FOLDER: str(self.progress_of(stage))}
        wait = SHORTEST_WAIT
        while True:
            lines.clear()
            code = self._stream(command, on_line, lines, f"{stage}.log", on_tick, progress)
            user = read_user_of_files(lines)
            if user is not None:
                on_line(f"waiting: another command uses the files of {stage}: {user}")
            if user is None or processes.pause(wait):
                outcome = read_outcome(stage, lines, code, time.monotonic() - started)
                same = made_before == read_lock(self.root).get(stage, {}).get("outs", [])
                return replace(outcome, same_products=same and outcome.status != "failed")
            wait = min(2 * wait, LONGEST_WAIT)

    def progress_of(self, stage: str) -> Path:
        """Where the trainings of a stage say how far they are."""
        return self.root / "runs/progress" / stage

    def metrics(self, stage: str) -> dict[str, Any]:
        """The numbers of a stage that has run, by file: what its outs under metrics/ hold."""
        outs = read_lock(self.root).get(stage, {}).get("outs", [])
        files = [self.root / out["path"] for out in outs if is_metrics_file(out["path"])]
        return {file.stem: read_json(file) for file in files if file.is_file()}

    def share_cache(self, other: "Workspace") -> None:
        """Keep products where the other workspace keeps them, with its own remotes."""
        settings = other.root / ".dvc/config.local"
        if settings.is_file():
            shutil.copy2(settings, self.root / ".dvc/config.local")
        cache = other.root / other._answer(["cache", "dir"]).strip()
        self._answer(["cache", "dir", "--local", str(cache)])
        remote = other.default_remote()
        if remote is not None:  # an address that is relative counts from the file that has it
            url = next(
                line.partition("=")[2]
                for line in other._answer(["config", "--list"]).splitlines()
                if line.startswith(f"remote.{remote}.url=")
            )
            self._answer(["remote", "modify", "--local", remote, "url", url])

    def bring_products(self) -> None:
        """The products that dvc.lock names, from the cache; what is not there has to be made.

        dvc would find them by itself, in its run cache, were it not for outs that git keeps: of a
        stage that has one, other than metrics and plots, it takes no note there.
        """
        with suppress(DvcFailed):
            self._answer(["checkout", "--allow-missing"])

    def take_results(self, other: "Workspace", *, force: bool = False) -> None:
        """Make the results of another workspace, which shares our cache, our own.

        Raises:
            UserError: products here that are in no cache would be lost, and force is not given,
                or those of the other one are in no cache; nothing has changed here.
        """
        lock, theirs = self.root / LOCK, read_lock(other.root)
        before = lock.read_text(encoding="utf-8") if lock.is_file() else None
        merged = {**read_lock(self.root), **theirs}
        write_whole(lock, yaml.safe_dump({"schema": "2.0", "stages": merged}, sort_keys=False))
        try:
            self._answer(["checkout", *(["--force"] if force else [])])
        except BaseException as error:  # Ctrl-C, too
            if before is None:
                lock.unlink()
            else:
                write_whole(lock, before)
            with suppress(DvcFailed):  # some products may have been taken already
                self._answer(["checkout"])
            if isinstance(error, DvcFailed):
                raise UserError(f"the products could not be brought here:\n{error}") from None
            raise
        for path in [out["path"] for stage in theirs.values() for out in stage.get("outs", [])]:
            if path.startswith(("metrics/", "plots/")) and (other.root / path).is_file():
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(other.root / path, self.root / path)

    def all_metrics(self) -> dict[str, Any]:
        """What `dvc metrics show` shows: numbers by file."""
        shown = json.loads(self._answer(["metrics", "show", "--json"]))
        files = shown.get("", {}).get("data", {})
        return {name: file["data"] for name, file in files.items() if "data" in file}

    def default_remote(self) -> str | None:
        """The remote that `dvc push` goes to by itself, as dvc's config names it."""
        return self._answer(["config", "core.remote"]).strip() or None

    def push(
        self,
        targets: Sequence[str],
        on_line: Callable[[str], None],
        on_tick: Callable[[], None] = lambda: None,
    ) -> tuple[bool, str]:
        """Copy what stages or paths made, as dvc.lock has it, to the default remote.

        Returns:
            Whether all of it is there now, and dvc's last lines. What arrived before a failure
            stays there, and nothing here changes.
        """
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        code = self._stream(["push", *targets], on_line, lines, "push.log", on_tick)
        # Of bytes that it finds neither here nor there dvc only warns.
        is_there = code == 0 and not any(_MISSING in line for line in lines)
        return is_there, indented([line for line in lines if line.strip()])

    def fetch(self, out: Mapping[str, Any], into: Path) -> None:
        """Write what an entry of some commit's dvc.lock stands for to a path of its own.

        Not `dvc artifacts get`, which reads the remote from that commit's configuration: it may
        have named none yet, or one that has moved since. Here today's configuration counts,
        credentials of .dvc/config.local included.

        Args:
            out: the entry, with md5, size and the like.
            into: must not exist yet; whole or absent afterwards.

        Raises:
            DvcFailed: with what dvc said, mostly that neither cache nor remote has it.
        """
        cache = self.root / self._answer(["cache", "dir"]).strip()
        config = f"{self._answer(['config', '--list'])}\n{OF_A_COPY}cache.dir={cache}\n"
        entry = {**out, "path": "fetched"}
        into.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as folder:
            project = Workspace(Path(folder))
            (project.root / ".dvc").mkdir()
            (project.root / ".dvc/config").write_text(config_text(config), encoding="utf-8")
            (project.root / "fetched.dvc").write_text(yaml.safe_dump({"outs": [entry]}))
            project._answer(["pull" if "core.remote=" in config else "checkout"])
            (project.root / "fetched").rename(into)

    def _answer(self, command: list[str]) -> str:
        """What a dvc command that changes nothing prints.

        Raises:
            DvcFailed: with what dvc said.
        """
        done = subprocess.run(
            [*DVC, *command],
            cwd=self.root,
            env=environment(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            raise DvcFailed(indented(done.stderr.splitlines()))
        return done.stdout

    def _stream(
        self,
        command: list[str],
        on_line: Callable[[str], None],
        lines: deque[str],
        log: str,
        on_tick: Callable[[], None] = lambda: None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """Run a dvc command that may take hours, line by line; its exit code."""

        def heard(line: str) -> None:
            lines.append(line)
            if line.strip() and not _ADVICE.match(line):
                on_line(line)

        env = {**environment(), **variables}
        return processes.run(
            [*DVC, *command], self.root, env, self.root / LOGS / log, heard, on_tick
        )


def environment() -> dict[str, str]:
    """Ours, with `python` in dvc.yaml meaning the Python that runs us, and output unbuffered."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}


def read_dot(text: str) -> Graph:
    """The graph that `dvc dag --dot` prints: nodes and edges, quoted, one a line."""
    follows: dict[str, set[str]] = {}
    for line in text.splitlines():
        edge = _EDGE.match(line)
        if edge is None:
            continue
        before, after = edge["first"], edge["second"]
        follows.setdefault(before, set())
        if after is not None:
            follows.setdefault(after, set()).add(before)
    stages = {name: before for name, before in follows.items() if not name.endswith(".dvc")}
    inside = {name: before & stages.keys() for name, before in sorted(stages.items())}
    return {name: sorted(inside[name]) for name in TopologicalSorter(inside).static_order()}


def upstream_of(graph: Graph, targets: Sequence[str]) -> Graph:
    """The part of the graph that the targets need, themselves included.

    Args:
        graph: of the whole workspace.
        targets: stages, or the name before the "@" for all items of a matrix; none: everything.

    Raises:
        UserError: no such stage.
    """
    if not targets:
        return graph
    wanted: set[str] = set()
    for target in targets:
        named = {stage for stage in graph if stage == target or stage.split("@")[0] == target}
        if not named:
            raise UserError(f"there is no stage {target}; the stages are: {', '.join(graph)}")
        wanted |= named
    for stage in reversed(graph):  # those after before those before
        if stage in wanted:
            wanted.update(graph[stage])
    return {stage: before for stage, before in graph.items() if stage in wanted}


def read_outcome(stage: str, lines: Iterable[str], code: int, seconds: float) -> StageOutcome:
    """What a `dvc repro --single-item` came to, from what it printed and its exit code."""
    said = list(lines)
    if code == 0:
        ran = any(found[1] == stage for line in said if (found := _RAN.search(line)))
        return StageOutcome(stage, "ran" if ran else "cached", 0, seconds)
    exited = [int(found[1]) for line in said if (found := _EXITED.search(line))]
    # A shell says 128 + n for a process that a signal n ended; dvc passes a negative code on.
    exit_code = exited[-1] if exited else DVC_FAILED
    if exit_code in _CTRL_C:
        exit_code = INTERRUPTED
    shown = [line for line in said if line.strip() and not _RAN.search(line)]
    return StageOutcome(stage, "failed", exit_code, seconds, indented(shown))


def read_user_of_files(lines: Iterable[str]) -> str | None:
    """Who dvc said uses the files it needs: its process and command; None: nobody."""
    said = iter(lines)
    for line in said:
        if _IN_USE.search(line):
            return next(said, "").strip() or "unknown"
    return None


def config_text(listed: str) -> str:
    """A dvc config file from what `dvc config --list` prints; of a key given twice the last."""
    sections: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        key, is_pair, value = line.partition("=")
        section, _, option = key.partition(".")
        if section == "remote":
            name, _, option = option.rpartition(".")
            section = f"'remote \"{name}\"'"
        if is_pair:
            sections.setdefault(section, {})[option] = value
    return "".join(
        f"[{section}]\n" + "".join(f"    {option} = {value}\n" for option, value in pairs.items())
        for section, pairs in sections.items()
    )


def outs_by_stage(root: Path) -> dict[str, Any]:
    """What each stage has left, with digests."""
    return {stage: about.get("outs") for stage, about in read_lock(root).items()}


def read_lock(root: Path) -> dict[str, Any]:
    """dvc.lock by stage; empty where nothing has run.

    dvc writes it in place: what another stage has half written is read again in a moment.
    """
    for wait in (*READ_AGAIN, None):
        try:
            lock = yaml.safe_load((root / LOCK).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except yaml.YAMLError:
            if wait is None:
                raise
        else:
            if lock is not None or wait is None:
                break
        time.sleep(wait)
    return (lock or {}).get("stages") or {}


def is_made_with(root: Path, stage: str, section: str, values: Mapping[str, Any]) -> bool:
    """Whether a stage last ran with this section of params.yaml as `values` have it."""
    params = read_lock(root).get(stage, {}).get("params", {})
    return params.get(PARAMS_FILE.name, {}).get(section) == values.get(section)


def write_whole(path: Path, text: str) -> None:
    """Or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def is_metrics_file(path: str) -> bool:
    return path.startswith("metrics/") and path.endswith(".json") and ".run." not in path


def indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])
