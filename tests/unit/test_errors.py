"""What the user is told, and the code a stage ends with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from stages.errors import Interrupted, StageError, UserError, run_stage


def ending(main: Callable[[], None]) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        run_stage(main)
    return end.value.code


def failing(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("pretrain.temperature: too cold"), 2, "error: pretrain.temperature: too cold\n"),
        (Interrupted("saved after step 7"), 75, "stopped: saved after step 7\n"),
        (StageError("loss is not finite"), 1, "stopped: loss is not finite\n"),
    ],
)
def test_a_message_without_a_traceback_and_the_right_code(
    error: StageError, code: int, said: str, capsys: pytest.CaptureFixture[str]
):
    assert ending(failing(error)) == code
    assert capsys.readouterr().err == said


def test_ctrl_c_before_anything_is_saved_can_be_run_again(capsys: pytest.CaptureFixture[str]):
    assert ending(failing(KeyboardInterrupt())) == 75
    assert "run it again" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's disk that is always full")
def test_a_full_disk_is_the_users_to_mend(capsys: pytest.CaptureFixture[str]):
    assert ending(lambda: Path("/dev/full").write_text("weights")) == 2
    said = capsys.readouterr().err
    assert "no space left" in said
    assert "run the same command" in said


def test_a_folder_that_may_not_be_written_is_named(capsys: pytest.CaptureFixture[str]):
    where = "/proc/version"  # not even root may write it
    assert ending(failing(PermissionError(13, "Permission denied", where))) == 2
    assert where in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_stage(failing(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("stage", "key", "value", "said"),
    [
        ("finetune", ("finetune", "layers"), [0, 1, 5], "finetune.layers.2: Input should be less"),
        ("finetune", ("pretrain", "head", "depth"), 1, "names layer 2, but pretrain.head.depth"),
        ("pretrain", ("data", "image_size"), 12, "data.image_size (12 pixels) is too small for"),
    ],
)
def test_what_the_networks_cannot_do_ends_with_2_before_anything_runs(
    tmp_path: Path, root: Path, stage: str, key: tuple[str, ...], value: object, said: str
):
    params = yaml.safe_load((root / "pipeline/profiles/quick.yaml").read_text(encoding="utf-8"))
    place = params
    for name in key[:-1]:
        place = place[name]
    place[key[-1]] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    words = [*("--fraction", "0.01")] if stage == "finetune" else []
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: params.yaml can't be used:\n")
    assert said in done.stderr


STAGE = """
import os, signal, sys, time
from stages.errors import run_stage, say
def main():
    say("ready")
    {body}
run_stage(main)
"""


def a_stage(root: Path, body: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STAGE.format(body=body)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job is deaf to Ctrl-C, and so are its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_signal_outside_of_training_ends_with_75(root: Path, number: signal.Signals):
    stage = a_stage(root, "time.sleep(60)")
    assert stage.stdout is not None
    assert stage.stdout.readline() == "ready\n"
    stage.send_signal(number)
    _, errors = stage.communicate(timeout=30)
    assert (stage.returncode, errors) == (
        75,
        "stopped: interrupted outside of training; run it again\n",
    )


def test_a_reader_that_is_gone_ends_no_stage(root: Path):
    stage = a_stage(
        root,
        "sys.stdin.readline(); [say('step') for _ in range(99)]; sys.exit(3)",
        stdin=subprocess.PIPE,
    )
    assert stage.stdin is not None
    assert stage.stdout is not None
    stage.stdout.readline()
    stage.stdout.close()
    stage.stdin.write("\n")
    stage.stdin.close()
    assert stage.wait(timeout=30) == 3
    assert stage.stderr is not None
    with stage.stderr as errors:
        assert errors.read() == ""


STARTER = "import subprocess, sys; subprocess.run(sys.argv[1:])"
SHELL_THAT_STAYS = ("sh", "-c", '"$@"; exit $?', "sh")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a signal")
@pytest.mark.parametrize("through", [(), SHELL_THAT_STAYS], ids=["at once", "by a shell"])
@pytest.mark.parametrize(
    ("stage_of", "ends"), [({"DVC_STAGE": "pretrain"}, True), ({}, False)], ids=["dvc", "a person"]
)
def test_a_stage_of_dvc_stops_when_dvc_is_killed_and_one_of_a_person_does_not(
    root: Path, through: tuple[str, ...], stage_of: dict[str, str], ends: bool
):
    starter = subprocess.Popen(
        [
            *(sys.executable, "-c", STARTER, *through),
            *(sys.executable, "-c", STAGE.format(body="time.sleep(60)")),
        ],
        cwd=root,
        env={**{k: v for k, v in os.environ.items() if k != "DVC_STAGE"}, **stage_of},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    with starter.stdout as output:
        assert output.readline() == "ready\n"
        below = psutil.Process(starter.pid).children(recursive=True)
        assert len(below) == 1 + bool(through)
        starter.kill()
        starter.wait()
        time.sleep(0.5)
        gone, still = psutil.wait_procs(below, timeout=10 if ends else 0)
        assert len(gone) == (len(below) if ends else 0)
        for process in still:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Unix's limits")
def test_a_limit_on_file_sizes_is_the_users_to_mend(tmp_path: Path, root: Path):
    limit = "import pathlib, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    stage = a_stage(root, f"{limit}; pathlib.Path(r'{tmp_path}/state').write_bytes(bytes(2000))")
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 2
    assert "the size that a file may have here (ulimit -f)" in errors
