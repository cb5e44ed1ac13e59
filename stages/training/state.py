"""All that changes while a model trains."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer


@dataclass
class TrainState:
    """Model, optimizer and step, and what a method keeps beside them (EMA copy, queue).

    `curve` holds the rows logged so far, `seconds` and `waited_seconds` the time spent so far,
    so that a continued run reports all of itself. `events` tells what befell the run: rollbacks
    (see `recovery`), each of which lowers every later learning rate, and a collapse.

    No random-number state: views are a pure function of (seed, epoch, key, view), and the order
    of the data of (seed, epoch, position), so `step` alone says where a run stands.
    """

    model: nn.Module
    optimizer: Optimizer
    step: int = 0
    beside: dict[str, nn.Module] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    waited_seconds: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lr_factor(self) -> float:
        """What the schedule's learning rates are multiplied by: 1 but for rollbacks."""
        return math.prod(event.get("lr_factor", 1.0) for event in self.events)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "curve": list(self.curve),
            "seconds": self.seconds,
            "waited_seconds": self.waited_seconds,
            "events": list(self.events),
            "beside": {name: module.state_dict() for name, module in self.beside.items()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        self.curve = list(saved["curve"])
        self.seconds = saved["seconds"]
        self.waited_seconds = saved["waited_seconds"]
        self.events = list(saved["events"])
        for name, module in self.beside.items():
            module.load_state_dict(saved["beside"][name])
