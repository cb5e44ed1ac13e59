"""The machine a plan is for: cores, memory, disk, GPU."""

import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from stages.training.runtime import Runtime

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Hardware:
    """What there is, and what is left of it.

    Attributes:
        cores: that this process may use.
        threads: that torch uses.
        gpu: its name; None: there is none, or it is not to be used.
        gpus: that can be used here.
        memory_of: what the memory is of, in words.
        memory_bytes: of the GPU where there is one, else of the machine.
        disk_free_bytes: where the project lies.
        busy_cores: that other work took in the last minute.
    """

    cores: int
    threads: int
    gpu: str | None
    gpus: int
    memory_of: str
    memory_bytes: int
    disk_free_bytes: int
    busy_cores: float


def hardware_of(runtime: Runtime) -> Hardware:
    on_gpu = runtime.device.type == "cuda"
    gpu = torch.cuda.get_device_name(runtime.device) if on_gpu else None
    memory = torch.cuda.mem_get_info(runtime.device)[1] if on_gpu else machine_memory()
    return Hardware(
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        gpu=gpu,
        gpus=torch.cuda.device_count() if on_gpu else 0,
        memory_of=gpu or "this machine",
        memory_bytes=memory,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        busy_cores=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0,
    )


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def machine_memory() -> int:
    """Of the machine, or of the container where that has a limit."""
    total = psutil.virtual_memory().total
    try:
        return min(int(CGROUP_LIMIT.read_text(encoding="ascii")), total)
    except (OSError, ValueError):  # no such file, or "max"
        return total


def cores_are_busy() -> bool:
    """Whether other work took more than half of the cores in the last minute."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load > 0.5 * usable_cores() + 0.5


@contextmanager
def threads(count: int | None) -> Generator[None, None, None]:
    """So many threads of torch within it; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
