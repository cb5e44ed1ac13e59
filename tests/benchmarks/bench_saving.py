"""What a save costs training: aside, as we do it, and in place, as it is usually done.

Some steps of a ResNet-50 with its momentum (205 MB of state) are taken without a save, with one
aside and with one in place, in turns; the cost is what they take longer, its share that of the
default interval. One thread computes, so that a thread that writes has a core of its own.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from stages.models.simclr import build_encoder, build_simclr
from stages.sections.runtime import RuntimeParams
from stages.training import checkpoint
from stages.training.runtime import Runtime
from stages.training.saving import Saver
from stages.training.state import TrainState

AT_MOST_THIS_SHARE_OF_THE_TIME = 0.01
IMAGES, SIDE = 4, 64


def a_state(device: torch.device) -> TrainState:
    torch.manual_seed(0)
    model = build_simclr(build_encoder(50, stem="imagenet")).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    return TrainState(model, optimizer)


def take_steps(state: TrainState, count: int, device: torch.device) -> None:
    images_BCHW = torch.rand(IMAGES, 3, SIDE, SIDE, device=device)
    for _ in range(count):
        state.optimizer.zero_grad(set_to_none=True)
        state.model(images_BCHW).square().mean().backward()
        state.optimizer.step()
        state.step += 1
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="longer than a write takes")
    parser.add_argument("--folder", type=Path, help="on the disk that counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    state = a_state(device)
    take_steps(state, 2, device)
    every = RuntimeParams().save_every_seconds
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder, "last.pt")
        saver = Saver(path, "", Runtime(device), every, 0)
        ways: dict[str, Callable[[], object]] = {
            "no save": lambda: None,
            "aside": lambda: saver.begin(state),
            "in place": lambda: checkpoint.save(path, state, ""),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        stood_still: list[float] = []
        for _ in range(arguments.rounds):
            for way, save in ways.items():
                begun = time.perf_counter()
                save()
                if way == "aside":
                    stood_still.append(time.perf_counter() - begun)
                take_steps(state, arguments.steps, device)
                seconds[way].append(time.perf_counter() - begun)
                saver.close()
        size = path.stat().st_size
    took = {way: statistics.median(times) for way, times in seconds.items()}
    cost = {way: max(took[way] - took["no save"], 0.0) for way in ("aside", "in place")}
    figure = {
        "name": "save_share_of_time",
        "ratio": round(cost["aside"] / every, 5),
        "target": AT_MOST_THIS_SHARE_OF_THE_TIME,
        "peer": "in place",
        "peer_ratio": round(cost["in place"] / every, 5),
        "stood_still_seconds": round(statistics.median(stood_still), 4),
        "cost_seconds": {way: round(value, 3) for way, value in cost.items()},
        "steps_seconds": round(took["no save"], 3),
        "save_every_seconds": every,
        "state_megabytes": round(size / 1e6),
        "device": arguments.device,
    }
    print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
