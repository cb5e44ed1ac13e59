"""A step of LARS against a step of torch's SGD, on the parameters of a ResNet-50.

    python tests/benchmarks/bench_optim.py [--device cpu] [--rounds 15]

One JSON line per peer; `ratio` is their time over ours, `target` the least that is good: LARS may
cost little more than SGD. Steps of the peers alternate, and medians are compared.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from stages.models.simclr import build_encoder, build_simclr
from stages.optim.build import build_optimizer

AT_LEAST_THIS_SHARE_OF_SGDS_SPEED = 0.8
WEIGHT_DECAY = 1e-4


def build(device: str) -> nn.Module:
    """A ResNet-50 with SimCLRv2's head, and gradients."""
    torch.manual_seed(0)
    network = build_simclr(build_encoder(50)).to(device)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network


def median_seconds(optimizers: dict[str, Optimizer], device: str, rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for is_warm in (False, *[True] * rounds):  # the first step makes the buffers
        for name, optimizer in optimizers.items():
            synchronize(device)
            start = time.perf_counter()
            optimizer.step()
            synchronize(device)
            if is_warm:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    sgd = {"momentum": 0.9, "weight_decay": WEIGHT_DECAY, "nesterov": True}
    network = build(arguments.device)
    # One network for all: no step is so large that a weight leaves the finite numbers.
    optimizers = {
        "lars": build_optimizer("lars", network, 1e-6, WEIGHT_DECAY),
        "torch.optim.SGD(foreach)": SGD(network.parameters(), 1e-6, **sgd, foreach=True),
        "torch.optim.SGD(fused)": SGD(network.parameters(), 1e-6, **sgd, fused=True),
        "lars without adaptation": build_optimizer("sgd", network, 1e-6, WEIGHT_DECAY),
    }
    seconds = median_seconds(optimizers, arguments.device, arguments.rounds)
    for peer in sorted(optimizers.keys() - {"lars"}):
        is_promised = peer == "torch.optim.SGD(foreach)"
        figure = {
            "name": "lars_step_speed",
            "ratio": round(seconds[peer] / seconds["lars"], 2),
            "target": AT_LEAST_THIS_SHARE_OF_SGDS_SPEED if is_promised else None,
            "peer": peer,
            "ours_seconds": round(seconds["lars"], 5),
            "peer_seconds": round(seconds[peer], 5),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "device": arguments.device,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
