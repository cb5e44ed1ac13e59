"""Runs stages in forked children of one process that has imported torch, and kills them.

Called in a workspace with a JSON list of runs: {"stage": "pretrain", "words": [], "end": ...}.
`end` is null (let it finish), {"after": seconds} (SIGKILL so long after it has saved anew) or
{"at": name of a moment within a save, "count": n} (SIGKILL itself at the n-th time).
Prints a JSON list: exit code (negative: the signal), and the last step saved, of each.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from stat import S_ISDIR

import torch
import torch._dynamo  # the first optimizer step would import it, in every child anew

from stages.errors import run_stage
from stages.evaluation.classify import import_ahead
from stages.training import checkpoint

MOMENTS = ("writing", "fsync", "between renames", "after renames")


def die_at(moment: str, count: int) -> None:
    """Have this process kill itself the n-th time it comes to a moment of a save."""
    left = [count]

    def pass_by(name: str) -> None:
        if name == moment:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync, replace, serialise = os.fsync, Path.replace, checkpoint._serialise

    def dying_fsync(number: int) -> None:
        pass_by("after renames" if S_ISDIR(os.fstat(number).st_mode) else "fsync")
        fsync(number)

    def dying_replace(path: Path, target: Path) -> Path:
        if path.suffix == ".partial" and Path(target).suffix == ".pt":
            pass_by("between renames")
        return replace(path, target)

    def dying_serialise(saved, write, flush) -> None:
        def half(data) -> int:
            data = memoryview(data).cast("B")
            if moment == "writing" and left[0] == 1 and len(data) > 1000:
                write(data[: len(data) // 2])
                flush()
                pass_by("writing")
            return write(data)

        serialise(saved, half, flush)
        if moment == "writing":
            left[0] -= 1

    os.fsync, Path.replace, checkpoint._serialise = dying_fsync, dying_replace, dying_serialise


def saved_files() -> dict[str, int]:
    found = {}
    for path in Path("runs").rglob("last.pt"):
        try:
            found[str(path)] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run(stage: str, words: list[str], end: dict | None) -> int:
    """The exit code of a stage in a child; negative where a signal ended it."""
    before = saved_files()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)  # our standard output is the answer
        os.environ.pop("DVC_STAGE", None)
        sys.argv = [stage, *words]
        if end and "at" in end:
            die_at(end["at"], end["count"])
        code = 1
        try:
            run_stage(importlib.import_module(f"stages.{stage}").main)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    if end and "after" in end:
        while (
            saved_files() == before
            and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.005)
        time.sleep(end["after"])
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def last_step() -> int | None:
    path = Path("runs/pretrain/last.pt")
    found = [one for one in (path, checkpoint.before(path)) if one.exists()]
    return checkpoint.load(found[0])["state"]["step"] if found else None


def main() -> None:
    torch.set_num_threads(1)
    for stage in ("pretrain", "finetune", "supervised", "distill", "subsets"):
        importlib.import_module(f"stages.{stage}")
    runs = json.loads(sys.argv[1])
    if any(one["stage"] not in {"pretrain", "subsets"} for one in runs):
        import_ahead().join()  # likewise: seconds of importing what scores a classifier
    answers = [[run(one["stage"], one["words"], one["end"]), last_step()] for one in runs]
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
