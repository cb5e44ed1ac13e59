"""What the user is told, and the code a stage ends with."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
