"""Where a stage runs: device, threads, and its place among the training processes."""

import ctypes
import os
import signal
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.errors import UserError

Module = TypeVar("Module", bound=nn.Module)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is Slurm's warning


@dataclass(frozen=True)
class Runtime:
    """One training process: its device and its rank among `world_size` processes.

    Attributes:
        device: of modules and batches.
        rank: 0 is the main process.
        world_size: processes that train one network together.
        is_alone: no other training shares its terminal.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    is_alone: bool = True

    @classmethod
    def start(cls, device: str, threads: int) -> "Runtime":
        """Set up the device and, under torchrun, the process group.

        Args:
            device: "auto" (a GPU where there is one), "cpu" or "cuda".
            threads: CPU threads of this process; 0: all cores.

        Raises:
            UserError: a GPU is asked for and none can be used.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "params.yaml asks for runtime.device: cuda, but torch finds no usable GPU here.\n"
                "  Set runtime.device to auto or cpu."
            )
        if threads:
            torch.set_num_threads(threads)
        keep_freed_memory()
        on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls(torch.device("cuda" if on_gpu else "cpu"))
        local_rank = int(os.environ["LOCAL_RANK"])
        if on_gpu:
            torch.cuda.set_device(local_rank)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if on_gpu else "gloo")
        place = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
        return cls(place, dist.get_rank(), world_size)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def stop(self) -> None:
        """Leave the process group, once the others have come as far."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def place(self, module: Module) -> Module:
        """The module on the device, convolution weights in channels_last."""
        return module.to(self.device).to(memory_format=torch.channels_last)

    def arrange(self, images_BCHW: Tensor) -> Tensor:
        """Images in the memory layout of the module's weights."""
        return images_BCHW.contiguous(memory_format=torch.channels_last)

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """bfloat16 where it is asked for; float32 otherwise."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"
        )

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a global batch.

        Raises:
            UserError: the batch does not divide evenly over the processes.
        """
        share, rest = divmod(batch_size, self.world_size)
        if rest:
            raise UserError(
                f"a batch of {batch_size} images can't be dealt evenly to {self.world_size} "
                "processes.\n  Choose a batch_size that is a multiple of runtime.processes."
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any training process, so that all act on it together."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of giving it back to the system.

    A training step frees and takes the same large blocks over and over; fresh pages cost a CPU
    step some 5-10% of its time. Other C libraries lack the call and go without.
    """
    mmap_threshold, trim_threshold = -3, -1  # glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


class StopRequest:
    """Set by one of STOP_SIGNALS; read after each step."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Generator[StopRequest]:
    """Turn the first stop signal into a request the loop honours at the end of its step."""
    request = StopRequest()
    before = {number: signal.signal(number, request._remember) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
