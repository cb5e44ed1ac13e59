"""How many images fit on the device at once: found by trying, and kept for the next start.

Only what is equal to float rounding is tried: passes of other sizes where batch norm is over a
fixed number of images, more recomputation where it is over the whole batch.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stages.errors import UserError
from stages.models.batch_norm import frozen_moving_statistics, use_global_batch_norm
from stages.models.resnet import Recompute
from stages.models.simclr import SimCLR
from stages.training.micro_batches import Passes, embed
from stages.training.runtime import Runtime

LEVELS: tuple[Recompute, ...] = ("none", "groups", "blocks")
MOST_OF_MEMORY = 0.9  # the rest is for the loss, the optimizer, and what can't be foreseen
FILE = "fits.json"


@dataclass(frozen=True)
class Fit:
    """A way to take a batch through the network.

    Attributes:
        images: in a pass.
        recompute: of activations.
    """

    images: int
    recompute: Recompute


def ways(n_images: int, statistics_over: int | None, recompute: Recompute) -> list[Fit]:
    """What "auto" may choose from for a share of so many images, the quickest first."""
    if statistics_over is None:  # a pass has to hold all that is normalised as one
        return [Fit(n_images, level) for level in LEVELS[LEVELS.index(recompute) :]]
    n_parts = n_images // statistics_over
    sizes = [n * statistics_over for n in range(n_parts, 0, -1) if n_parts % n == 0]
    return [Fit(size, recompute) for size in sizes]


def first_that_fits(found: Sequence[Fit], fits: Callable[[Fit], bool]) -> Fit:
    """The first that does.

    Raises:
        UserError: none does.
    """
    for fit in found:
        if fits(fit):
            return fit
    last = found[-1]
    raise UserError(
        f"not even {last.images} images at once, recomputing {last.recompute}, fit on this "
        f"device.\n{CHOICES}"
    )


CHOICES = (
    "  Lower pretrain.batch_size; or let batch norm be over fewer images "
    "(pretrain.batch_norm_images) with\n  runtime.micro_batch: auto, which keeps the loss over the "
    "whole batch; or keep less: runtime.recompute:\n  blocks; or use more processes. See "
    "pipeline/docs/training.md."
)


def fit_batch(
    model: SimCLR,
    views_VBCHW: Tensor,
    statistics_over: int | None,
    recompute: Recompute,
    runtime: Runtime,
    precision: str,
    folder: Path | None,
    beside_bytes: int = 0,
) -> Fit:
    """The quickest way that fits on this GPU; the quickest of all on a CPU, which pages.

    All processes take the same. Weights and statistics stay as they are.

    Args:
        model: its weights must be on the device.
        views_VBCHW: any of the shape that training has, this process's share.
        statistics_over: see `Passes`.
        recompute: the least.
        runtime: device and processes.
        precision: of the network.
        folder: keeps what was found; None: nothing is kept.
        beside_bytes: that others need on the device: batches made ahead.

    Raises:
        UserError: nothing fits.
    """
    found = ways(views_VBCHW.shape[1], statistics_over, recompute)
    if runtime.device.type != "cuda":
        return found[0]
    asked = _question(model, views_VBCHW, found, runtime, precision)
    asked["beside_bytes"] = beside_bytes
    most_bytes = MOST_OF_MEMORY * torch.cuda.mem_get_info()[1] - beside_bytes
    known = _read(folder, asked) if folder else None
    # One that runs out of memory in the middle must not leave the others waiting for it.
    alone = replace(runtime, rank=0, world_size=1)

    def fits(fit: Fit) -> bool:
        passes = Passes(fit.images, statistics_over)
        part_VMCHW = views_VBCHW[:, : fit.images]
        works = _peak_bytes(model, part_VMCHW, fit, passes, alone, precision) <= most_bytes
        return not runtime.any_process(not works)

    if runtime.any_process(known is None):
        use_global_batch_norm(model, None)
        try:
            known = first_that_fits(found, fits)
        finally:
            if statistics_over is None and runtime.world_size > 1:
                use_global_batch_norm(model, dist.group.WORLD)
        if folder and runtime.is_main:
            _write(folder, asked, known)
    assert known is not None
    return known


def _peak_bytes(
    model: SimCLR,
    views_VMCHW: Tensor,
    fit: Fit,
    passes: Passes,
    runtime: Runtime,
    precision: str,
) -> float:
    """Most memory of a pass there and back that teaches nothing; infinite where it runs out."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = model.encoder.recompute
    model.encoder.recompute = fit.recompute
    try:
        with frozen_moving_statistics(model):
            on_device = views_VMCHW.to(runtime.device)
            embedded = embed(model, on_device, passes, runtime, precision)
            embedded.backward(embedded.z_VBP.square().mean())
    except torch.OutOfMemoryError:
        return math.inf
    finally:
        model.encoder.recompute = before
        model.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_reserved()


def _question(
    model: SimCLR, views_VBCHW: Tensor, found: list[Fit], runtime: Runtime, precision: str
) -> dict[str, Any]:
    """Whatever the answer depends on."""
    properties = torch.cuda.get_device_properties(runtime.device)
    return {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "views": list(views_VBCHW.shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": precision,
        "torch": torch.__version__,
        "ways": [asdict(fit) for fit in found],
    }


def _read(folder: Path, asked: dict[str, Any]) -> Fit | None:
    try:
        written = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = [Fit(**way) for way in asked["ways"]]
    if not isinstance(written, dict) or written.get("asked") != asked:
        return None
    return next((fit for fit in known if asdict(fit) == written.get("fits")), None)


def _write(folder: Path, asked: dict[str, Any], fit: Fit) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps({"asked": asked, "fits": asdict(fit)}), encoding="utf-8")
    partial.replace(folder / FILE)
