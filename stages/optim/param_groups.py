"""Which parameters are decayed, and which LARS adapts: the official rules, told by structure.

The official code goes by variable names (a regular expression finds `batch_normalization`,
`bias`, `head_supervised`). Here a normalisation layer is one whose own parameters all have one
dimension at most (gamma and beta), which holds for every kind of norm and asks no class by name;
a bias is a parameter of one dimension in any other layer; the supervised head is the part called
`linear`, or a network that is nothing but an `nn.Linear`.
"""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

SUPERVISED_HEAD = "linear"

Rule = Literal["lars", "sgd", "adamw"]


def param_groups(module: nn.Module, weight_decay: float, rule: Rule) -> list[dict[str, Any]]:
    """A module's trainable parameters in groups for an optimizer, each with its weight_decay.

    lars: kernels are decayed and adapted; norms, biases and the supervised head are neither.
        Decay would pull gamma from the scale it is there to learn, and the trust ratio keeps a
        weight's steps in proportion to its size: what starts at 0 (beta, biases, the last gamma
        of a residual branch, a zero-initialised classifier) would hardly leave it. These get
        plain momentum at the full lr; for the head's decay see `supervised_head_decay`. Groups
        carry `adapt`.
    sgd: everything but norms is decayed, biases included (the official L2 term of other
        optimizers). Groups carry `adapt` = False.
    adamw: parameters of two dimensions or more are decayed, as is usual with it (not official).

    Empty groups are left out; order follows the module's.
    """
    chosen: list[Tensor] = []
    rest: list[Tensor] = []
    for owner, name, parameter in _trainable(module):
        is_kernel = parameter.ndim > 1
        chosen_by = {
            "lars": is_kernel and not _is_supervised_head(module, name),
            "sgd": not _is_norm(owner),
            "adamw": is_kernel,
        }
        (chosen if chosen_by[rule] else rest).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": chosen, "weight_decay": weight_decay, "adapt": rule == "lars"},
        {"params": rest, "weight_decay": 0.0, "adapt": False},
    ]
    if rule == "adamw":
        for group in groups:
            del group["adapt"]
    return [group for group in groups if group["params"]]


def supervised_head_decay(module: nn.Module, weight_decay: float) -> Tensor | float:
    """The L2 term that the official code adds to the loss for the supervised head under LARS.

    weight_decay / 2 times the sum of the kernel's squares, biases left out; 0 without a head.
    LARS itself must not decay the head (`param_groups`), or it would be decayed twice.
    """
    return sum(
        0.5 * weight_decay * parameter.square().sum()
        for _, name, parameter in _trainable(module)
        if parameter.ndim > 1 and _is_supervised_head(module, name)
    )


def _trainable(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield module.get_submodule(name.rpartition(".")[0]), name, parameter


def _is_norm(layer: nn.Module) -> bool:
    return all(parameter.ndim <= 1 for parameter in layer.parameters(recurse=False))


def _is_supervised_head(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) or SUPERVISED_HEAD in name.split(".")[:-1]
