"""An optimizer by its name in params.yaml, with the weight-decay rule that belongs to it."""

from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from stages.optim.lars import LARS
from stages.optim.param_groups import param_groups


def build_optimizer(
    name: Literal["lars", "sgd", "adamw"],
    module: nn.Module,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    *,
    nesterov: bool | None = None,
    classic_momentum: bool = True,
    trust_coefficient: float = 0.001,
    fused: bool = False,
) -> Optimizer:
    """An optimizer over a module's trainable parameters.

    Args:
        name: lars: official pretraining; sgd: Nesterov momentum, the official `momentum`
            optimizer (lr inside the buffer, unlike torch's); adamw: torch's own.
        module: frozen parameters are left out.
        lr: peak; a schedule writes `group["lr"]`.
        weight_decay: of the parameters that the rule decays; see `param_groups`.
        momentum: of lars and sgd.
        nesterov: of lars and sgd; None: as officially, sgd with and lars without.
        classic_momentum: of lars and sgd, see `LARS`; without it sgd is torch's own.
        trust_coefficient: of lars.
        fused: of adamw: all of a step in one kernel. Lars and sgd work on lists of weights anyhow.

    Raises:
        ValueError: no optimizer has that name, or the module has nothing to train.
    """
    if name not in ("lars", "sgd", "adamw"):
        raise ValueError(f"no optimizer is called {name!r}; choose lars, sgd or adamw")
    groups = param_groups(module, weight_decay, name)
    if not groups:
        raise ValueError("every parameter is frozen: there is nothing to train")
    match name:
        case "lars":
            nesterov = bool(nesterov)
        case "sgd":  # LARS that adapts nothing
            nesterov = nesterov is not False
        case "adamw":
            return torch.optim.AdamW(groups, lr, fused=fused or None)
    return LARS(
        groups,
        lr,
        momentum=momentum,
        trust_coefficient=trust_coefficient,
        nesterov=nesterov,
        classic_momentum=classic_momentum,
    )
