"""What must hold on a GPU before its speed means anything; each check gives a figure and its limit.

Shapes: V views, B images, C H W.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from stages.data.on_device import to_device
from stages.data.views import ViewRecipe, make_views
from stages.losses.nt_xent import nt_xent
from stages.losses.streaming_nt_xent import streaming_nt_xent
from stages.models.batch_norm import BatchNorm, use_global_batch_norm

Check = dict[str, Any]


def checks(device: torch.device, step: Callable[[], object]) -> Iterator[Check]:
    """All of them; `step` trains once and has done so before."""
    yield from views_are_those_of_the_cpu(device)
    yield streaming_is_the_plain_loss(device)
    yield no_wait_in_a_step(device, step)
    yield global_batch_norm_is_torchs(device)


def holds(name: str, difference: float, limit: float) -> Check:
    return {"check": name, "difference": difference, "limit": limit, "holds": difference <= limit}


def views_are_those_of_the_cpu(device: torch.device) -> Iterator[Check]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 120, (12, 2)).tolist()
    pixels = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    unlike = [torch.from_numpy(image_HWC).permute(2, 0, 1) for image_HWC in pixels]
    alike_BCHW = torch.from_numpy(rng.integers(0, 256, (12, 3, 64, 64), dtype=np.uint8))
    options = {"seed": 0, "epoch": 0, "key_hashes": np.arange(12, dtype=np.uint64)}
    for name, images in (("unlike", unlike), ("alike", alike_BCHW)):
        for convention in (ViewRecipe.official, ViewRecipe.torchvision):
            recipe = convention(48)
            on_cpu = make_views(images, recipe, **options)
            there = make_views(to_device(images, device), recipe, **options).cpu()
            difference = float((there - on_cpu).abs().max())
            told = f"views of images of {name} size, {convention.__name__}, as on the CPU"
            yield holds(told, difference, 1e-5)


def streaming_is_the_plain_loss(device: torch.device) -> Check:
    torch.manual_seed(0)
    z0_BP, z1_BP = torch.randn(2, 512, 64, device=device)
    gradients: list[Tensor] = []
    for loss in (nt_xent, streaming_nt_xent):
        z_BP = z0_BP.clone().requires_grad_()
        loss(z_BP, z1_BP, 0.1).backward()
        assert z_BP.grad is not None
        gradients.append(z_BP.grad)
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    return holds("gradient of the streaming loss is the plain one's", float(difference), 1e-4)


def no_wait_in_a_step(device: torch.device, step: Callable[[], object]) -> Check:
    if device.type != "cuda":
        return {"check": "no step waits for the device", "skipped": "needs a GPU"}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return {"check": "no step waits for the device", "holds": False, "found": str(error)}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"check": "no step waits for the device", "holds": True}


def global_batch_norm_is_torchs(device: torch.device) -> Check:
    """Two processes on one GPU, by gloo, with unequal shares of a batch."""
    name = "global batch norm over two processes is SyncBatchNorm"
    if device.type != "cuda":
        return {"check": name, "skipped": "torch's runs on a GPU alone"}
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_compare_norms, (folder,), nprocs=2)
        return holds(name, max(torch.load(path) for path in Path(folder).glob("*.pt")), 1e-4)


def _compare_norms(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    x_BCHW = torch.randn(7, 6, 5, 5, device="cuda") * 3 + 5
    x_BCHW = x_BCHW[[slice(0, 5), slice(5, 7)][rank]]
    found = []
    for build in (BatchNorm, nn.SyncBatchNorm):
        norm = build(6).cuda().train()
        if isinstance(norm, BatchNorm):
            use_global_batch_norm(norm, dist.group.WORLD)
        leaf_BCHW = x_BCHW.clone().requires_grad_()
        y_BCHW = norm(leaf_BCHW)
        (y_BCHW.square() * x_BCHW).sum().backward()
        assert leaf_BCHW.grad is not None
        found.append([y_BCHW.detach(), leaf_BCHW.grad, norm.weight.grad, norm.running_mean])
    differences = [float((a - b).abs().max()) for a, b in zip(*found, strict=True)]
    torch.save(max(differences), Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()
