"""Streaming NT-Xent against lightly's NTXentLoss: seconds and extra memory, forward + backward.

    python tests/benchmarks/bench_losses.py [--pairs 4096] [--width 128] [--rounds 5]

One JSON line per figure; `ratio` >= `target` is good. Runs of the peers alternate, and medians of
wall-clock time are compared, so that a busy machine slows them alike. The promise is for one
thread; with all of them the same is measured, but where other programs want the cores, threads
that wait for each other decide that figure. The peer is in the dependency group `bench`, which
`make peers` installs; without it only our own whole-matrix form is one. The last figure is of a
small batch, where what the training step takes (`nt_xent_by_size`) may cost no more than that form.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from stages.losses.build import nt_xent_by_size
from stages.losses.nt_xent import nt_xent
from stages.losses.streaming_nt_xent import streaming_nt_xent

TEMPERATURE = 0.1
TIMES_AS_FAST = 4.0
TIMES_LESS_MEMORY = 10.0
SMALL = 64  # pairs of a warm-up
SMALL_BATCH, SMALL_ROUNDS = 256, 51
SHARE_OF_THE_PLAIN_FORMS_SPEED = 0.9

Loss = Callable[[Tensor, Tensor], Tensor]


def build_losses() -> dict[str, Loss]:
    """Every loss that can be imported here, by name."""
    losses: dict[str, Loss] = {
        "streaming": lambda z0, z1: streaming_nt_xent(z0, z1, TEMPERATURE),
        "whole_matrix": lambda z0, z1: nt_xent(z0, z1, TEMPERATURE),
    }
    try:
        from lightly.loss import NTXentLoss
    except ImportError as error:
        print(
            f"lightly, the peer, can't be imported ({error}): no comparison with it.\n"
            "  Install it beside the locked packages: make peers",
            file=sys.stderr,
        )
    else:
        losses["lightly"] = NTXentLoss(temperature=TEMPERATURE)
    return losses


def draw(n_pairs: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(n_pairs, width, generator=generator)
    z1 = z0 + torch.randn(n_pairs, width, generator=generator)
    return z0.requires_grad_(), z1.requires_grad_()


def forward_and_backward(loss_function: Loss, views: tuple[Tensor, Tensor]) -> Tensor:
    for z_BP in views:
        z_BP.grad = None
    loss = loss_function(*views)
    loss.backward()
    return loss.detach()


def median_seconds(losses: dict[str, Loss], n_pairs: int, width: int, rounds: int) -> dict:
    """Median wall-clock seconds of each, the runs taken in turn."""
    views = draw(n_pairs, width)
    values = {name: forward_and_backward(loss, views) for name, loss in losses.items()}
    for name, value in values.items():  # all must compute the same thing
        torch.testing.assert_close(value, values["streaming"], rtol=1e-5, atol=0, msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds):
        for name, loss in losses.items():
            start = time.perf_counter()
            forward_and_backward(loss, views)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def extra_bytes(name: str, n_pairs: int, width: int) -> int:
    """How far one run lifts the resident memory of a process of its own (Linux)."""
    program = [sys.executable, __file__, "--pairs", str(n_pairs), "--width", str(width)]
    run = subprocess.run([*program, "--memory-of", name], check=True, capture_output=True)
    return int(run.stdout)


def measure_own_extra_bytes(loss: Loss, n_pairs: int, width: int) -> int:
    forward_and_backward(loss, draw(SMALL, width))  # libraries and threads are up
    views = draw(n_pairs, width)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    forward_and_backward(loss, views)
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    losses = build_losses()
    size = (arguments.pairs, arguments.width)
    if arguments.memory_of:
        print(measure_own_extra_bytes(losses[arguments.memory_of], *size))
        return
    setting = {"pairs": size[0], "width": size[1]}
    n_bytes = {name: extra_bytes(name, *size) for name in losses}
    report("nt_xent_extra_memory", n_bytes, TIMES_LESS_MEMORY, "bytes", setting)
    all_threads = torch.get_num_threads()
    for n_threads in sorted({1, all_threads}):
        torch.set_num_threads(n_threads)
        seconds = median_seconds(losses, *size, arguments.rounds)
        target = TIMES_AS_FAST if n_threads == 1 else None
        report("nt_xent_speed", seconds, target, "seconds", {**setting, "threads": n_threads})
    measure_small_batch(size[1])


def report(
    name: str, measured: dict, target: float | None, unit: str, setting: dict[str, int]
) -> None:
    """A line for each peer; only lightly is one that we promised to beat."""
    for peer in sorted(measured.keys() - {"streaming"}):
        print_figure(name, measured, peer, target if peer == "lightly" else None, unit, setting)


def measure_small_batch(width: int) -> None:
    torch.set_num_threads(1)
    losses: dict[str, Loss] = {
        "streaming": lambda z0, z1: nt_xent_by_size(z0, z1, TEMPERATURE),
        "whole_matrix": lambda z0, z1: nt_xent(z0, z1, TEMPERATURE),
    }
    seconds = median_seconds(losses, SMALL_BATCH, width, SMALL_ROUNDS)
    setting = {"pairs": SMALL_BATCH, "width": width, "threads": 1}
    name, target = "nt_xent_small_batch_speed", SHARE_OF_THE_PLAIN_FORMS_SPEED
    print_figure(name, seconds, "whole_matrix", target, "seconds", setting)


def print_figure(
    name: str, measured: dict, peer: str, target: float | None, unit: str, setting: dict[str, int]
) -> None:
    figure = {
        "name": name,
        "ratio": round(measured[peer] / measured["streaming"], 2),
        "target": target,
        "peer": peer,
        f"ours_{unit}": round(measured["streaming"], 6),
        f"peer_{unit}": round(measured[peer], 6),
        **setting,
    }
    print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
