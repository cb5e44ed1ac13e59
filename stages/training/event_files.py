"""The rows of a curve as TensorBoard event files, where someone asked for them.

pip install tensorboard
tensorboard --logdir runs/tensorboard
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from stages.errors import UserError

_NOT_SCALARS = {"step"}


class EventFiles:
    """Writes rows below a folder, one folder for each run; without a folder it does nothing."""

    def __init__(self, folder: str | None, run: str, *, after_step: int) -> None:
        """Open the files of a run.

        Args:
            folder: of all runs; None: nothing is written.
            run: its name becomes a folder.
            after_step: rows beyond this step that are there already are taken back: the run
                continues there.

        Raises:
            UserError: the package tensorboard is not installed.
        """
        self._writer = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                f"runtime.tensorboard is {folder}, but the package tensorboard is not installed.\n"
                "  Install it: pip install tensorboard; or write runtime.tensorboard: null."
            ) from None
        path = Path(folder, run.replace(" ", "-"))
        self._writer = SummaryWriter(str(path), purge_step=after_step + 1)

    def __enter__(self) -> "EventFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, row: Mapping[str, float]) -> None:
        """A row, on the disk before the next step: what a kill loses is done again anyway."""
        if self._writer is None:
            return
        for name, value in row.items():
            if name not in _NOT_SCALARS:
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()
