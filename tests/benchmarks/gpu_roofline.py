"""Operations and bytes of a step, and the seconds that they take at an H200's peaks.

Operations: multiplications and additions of convolutions and matrix products, forward and back.
Bytes: of the inputs and outputs of each operation as it is launched, nothing found in a cache; and
of convolutions and matrix products alone, as if all that stands between them were fused into them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

PEAK_BFLOAT16 = 989e12  # operations a second, dense
PEAK_BYTES = 4.8e12  # a second

_MOVES_NOTHING = ("view", "_unsafe_view", "t", "transpose", "detach", "expand", "slice", "select")
_PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm")


class Bytes(TorchDispatchMode):
    """Adds up what each operation reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.of_products = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        if name in _MOVES_NOTHING or func.is_view:
            return made
        touched = [
            part for part in tree_leaves((args, kwargs, made)) if isinstance(part, torch.Tensor)
        ]
        n_bytes = sum(part.numel() * part.element_size() for part in touched)
        self.all += n_bytes
        if name in _PRODUCTS:
            self.of_products += n_bytes
        return made


def roofline(step: Callable[[], object], n_images: int) -> list[dict[str, Any]]:
    """Rows of a table; `step` is called twice and trains on `n_images`."""
    with FlopCounterMode(display=False) as counted:
        step()
    with Bytes() as moved:
        step()
    operations = counted.get_total_flops()
    limits = {
        "matrix operations": operations / PEAK_BFLOAT16,
        "memory, all but products fused away": moved.of_products / PEAK_BYTES,
        "memory, every operation by itself": moved.all / PEAK_BYTES,
    }
    amounts = [operations, moved.of_products, moved.all]
    return [
        {
            "limit": name,
            "amount_of_an_image": float(f"{amount / n_images:.4g}"),
            "milliseconds_a_step": float(f"{seconds * 1e3:.4g}"),
            "images_per_second": math.floor(n_images / seconds),
        }
        for (name, seconds), amount in zip(limits.items(), amounts, strict=True)
    ]
