"""Where a stage runs: device, threads, and its place among the training processes."""

import ctypes
import os
import signal
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.errors import STOP_SIGNALS, StageError, UserError

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """One training process: its device and its rank among `world_size` processes.

    Attributes:
        device: of modules and batches.
        rank: 0 is the main process.
        world_size: processes that train one network together.
        is_alone: no other training shares its terminal.
        channels_last: memory layout of images and convolution weights.
        compile_mode: of `torch.compile` for what is trained; None: as it is written.
        fused_optimizer: one kernel per list of weights, where torch has it.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    is_alone: bool = True
    channels_last: bool = True
    compile_mode: str | None = None
    fused_optimizer: bool = False

    @classmethod
    def start(
        cls,
        device: str,
        threads: int,
        *,
        channels_last: bool | Literal["auto"] = "auto",
        compile_mode: str = "auto",
        fused_optimizer: bool | Literal["auto"] = "auto",
    ) -> "Runtime":
        """Set up the device and, under torchrun, the process group.

        Args:
            device: "auto" (a GPU where there is one), "cpu" or "cuda".
            threads: CPU threads of this process; 0: all cores.
            channels_last: "auto": yes, which was the quicker on CPUs.
            compile_mode: "none" or a mode of `torch.compile`; "auto": none, see
                pipeline/docs/training.md.
            fused_optimizer: "auto": on a GPU.

        Raises:
            UserError: a GPU is asked for and none can be used; or there are fewer than processes.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "params.yaml asks for runtime.device: cuda, but torch finds no usable GPU here.\n"
                "  Set runtime.device to auto or cpu."
            )
        require_gpus(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if threads:
            torch.set_num_threads(threads)
        keep_freed_memory()
        on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        build = partial(
            cls,
            channels_last=channels_last is True or channels_last == "auto",
            compile_mode=None if compile_mode in {"auto", "none"} else compile_mode,
            fused_optimizer=on_gpu if fused_optimizer == "auto" else fused_optimizer,
        )
        if world_size == 1:
            return build(torch.device("cuda" if on_gpu else "cpu"))
        local_rank = int(os.environ["LOCAL_RANK"])
        if on_gpu:
            torch.cuda.set_device(local_rank)
        if not dist.is_initialized():
            # What lies on the CPU goes by gloo, so that agreeing to stop waits for no GPU.
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        place = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
        return build(place, dist.get_rank(), world_size)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def stop(self) -> None:
        """Leave the process group, once the others have come as far."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()

    def place(self, module: Module) -> Module:
        """The module on the device, in the memory layout that its images have, too."""
        module = module.to(self.device)
        return module.to(memory_format=torch.channels_last) if self.channels_last else module

    def arrange(self, images_BCHW: Tensor) -> Tensor:
        """Images in the memory layout of the module's weights."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images_BCHW.contiguous(memory_format=layout)

    @contextmanager
    def compiled(self, *modules: nn.Module) -> Generator[None]:
        """Within it, calls of these modules run compiled, if this process compiles at all."""
        for module in modules:
            if self.compile_mode is not None:
                module.compile(mode=self.compile_mode)
        try:
            yield
        finally:
            for module in modules:
                module._compiled_call_impl = None

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
                "processes.\n  Choose a batch_size that is a multiple of them: runtime.processes "
                "times runtime.hosts."
            )
        return slice(self.rank * share, (self.rank + 1) * share)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any training process, so that all act on it together."""
        return bool(self.highest(int(flag)))

    def highest(self, value: int) -> int:
        """The highest value that any training process has.

        On a GPU it waits for the other processes, but not for what the devices have yet to do.
        """
        if self.world_size == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return int(values.item())

    def from_main(self, text: str) -> str:
        """What the main process says, in every process."""
        if self.world_size == 1:
            return text
        said = [text]
        dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return str(said[0])

    def raise_together(self, error: Exception | None) -> None:
        """Raise this process's error, or one of the same exit code if another process has one."""
        code = self.highest(0 if error is None else getattr(error, "exit_code", 1))
        if error is not None:
            raise error
        if code:
            elsewhere = UserError if code == UserError.exit_code else StageError
            raise elsewhere("another process of this training could not go on; it says why.")


def require_gpus(device: str, processes: int) -> None:
    """Each process of this host needs a GPU of its own, if any is used.

    Raises:
        UserError: there are fewer.
    """
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if 0 < gpus < processes:
        raise UserError(
            f"runtime.processes is {processes}, and torch finds {gpus} "
            f"{'GPU' if gpus == 1 else 'GPUs'} on this host: each process needs one of its own.\n"
            f"  Write runtime.processes: {gpus}, or let the scheduler give this job more."
        )


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
