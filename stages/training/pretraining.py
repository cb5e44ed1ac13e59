"""Contrastive pretraining put together from its params: images, views, network, step."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from stages.data.gpu_jpeg import GpuDecoder
from stages.data.store import ImageStore
from stages.errors import UserError, say
from stages.losses.build import ContrastiveLoss, build_loss
from stages.models.batch_norm import normalise_rows_together, use_global_batch_norm
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.resnet import Recompute
from stages.models.simclr import SimCLR, build_encoder, build_simclr
from stages.params import Params
from stages.sections.pretraining import PretrainParams
from stages.training.batches import Batch, Images, ViewLoader
from stages.training.fitting import CHOICES, Fit, fit_batch
from stages.training.images import open_images
from stages.training.loading import loader_of
from stages.training.loop import Watched
from stages.training.micro_batches import Passes
from stages.training.products import seeded
from stages.training.recipes import optimizer_for, view_recipe
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import Step, contrastive_step

N_VIEWS = 2


def open_store(params: Params) -> ImageStore:
    return open_images(params, "train", with_labels=False)


def load_views(params: Params, store: ImageStore, runtime: Runtime, batch_size: int) -> ViewLoader:
    """This process's share of batches of two views of each image.

    Raises:
        UserError: a GPU is asked for, and is not there or can't do it.
    """
    batch_size = min(batch_size, store.n_images)
    return loader_of(params, runtime)(
        images_of(params, store, runtime),
        view_recipe(params.pretrain.views, params.data.image_size),
        batch_size,
        n_views=N_VIEWS,
        seed=params.pretrain.seed,
        rows=runtime.rows(batch_size),
    )


def images_of(params: Params, store: ImageStore, runtime: Runtime) -> Images:
    """The store, or what decodes its files on the GPU."""
    if params.pretrain.decode_on == "cpu":
        return store
    if runtime.device.type != "cuda":
        raise UserError(
            "params.yaml asks for pretrain.decode_on: gpu, but training runs on "
            f"{runtime.device}.\n"
            "  Write cpu: the pixels are not the same, so that is not decided for you."
        )
    return GpuDecoder(store, params.data.channels, runtime.device)


def build_state(
    pretrain: PretrainParams,
    architecture: dict[str, Any],
    batch_size: int,
    runtime: Runtime,
    recompute: Recompute = "none",
) -> TrainState:
    """Freshly initialised model, optimizer and, where asked for, momentum memory."""
    seeded(pretrain.seed)
    encoder = build_encoder(**architecture["encoder"], in_channels=architecture["channels"])
    encoder.recompute = recompute
    model = runtime.place(build_simclr(encoder, **architecture["head"]))
    beside: dict[str, nn.Module] = {}
    if pretrain.memory.kind != "none":
        momentum_encoder = MomentumEncoder(model, pretrain.memory.decay)
        queue = NegativeQueue(
            pretrain.memory.size,
            pretrain.head.out_dim,
            random_start=pretrain.memory.kind == "moco",
        )
        beside = {
            "momentum_encoder": runtime.place(momentum_encoder),
            "queue": queue.to(runtime.device),
        }
    for module in (model, *beside.values()):
        if pretrain.batch_norm_images is not None:
            normalise_rows_together(module, N_VIEWS * pretrain.batch_norm_images)
        elif runtime.world_size > 1:
            use_global_batch_norm(module, dist.group.WORLD)
    model.train()
    fused = runtime.fused_optimizer
    optimizer = optimizer_for(model, pretrain.optimizer, batch_size, fused=fused)
    return TrainState(model, optimizer, beside=beside)


def passes_of(
    params: Params, state: TrainState, loader: ViewLoader, runtime: Runtime, folder: Path | None
) -> Passes:
    """In which passes a batch goes through the network; "auto" tries, and may recompute more.

    Args:
        params: all of them.
        state: as `build_state` made it.
        loader: of the views.
        runtime: device and processes.
        folder: keeps what "auto" found; None: nothing is kept.

    Raises:
        UserError: the batch can't be split so, or nothing fits.
    """
    pretrain, images = params.pretrain, params.runtime.micro_batch
    rows = runtime.rows(loader.batch_size)
    share, together = rows.stop - rows.start, pretrain.batch_norm_images
    try:
        Passes(images if isinstance(images, int) else None, together).sizes(share)
    except ValueError as error:
        raise UserError(
            f"{error}.\n  Choose pretrain.batch_norm_images and runtime.micro_batch that divide "
            f"{share}, the images of a process's step, the second a multiple of the first."
        ) from None
    if images != "auto":
        return Passes(images, together)
    model, size = state.model, loader.recipe.size
    assert isinstance(model, SimCLR)
    where = "cpu" if runtime.device.type == "cuda" else "meta"  # on a CPU nothing is tried
    noise_VBCHW = torch.rand(N_VIEWS, share, params.data.channels, size, size, device=where)
    recompute = params.runtime.recompute
    fit = fit_batch(
        model,
        noise_VBCHW,
        together,
        recompute,
        runtime,
        pretrain.precision,
        folder,
        loader.bytes_on_device(params.data.channels),
    )
    model.encoder.recompute = fit.recompute
    if runtime.is_main and fit != Fit(share, recompute):
        say(f"pretrain: {fit.images} images at once, recomputing {fit.recompute}")
    return Passes(fit.images, together)


def step_of(pretrain: PretrainParams, runtime: Runtime, passes: Passes | None = None) -> Step:
    """One optimizer step; a device too small for it is told of with what helps."""
    step = contrastive_step(
        runtime,
        pretrain.temperature,
        pretrain.precision,
        pretrain.memory.kind,
        loss_of(pretrain),
        loss_scale=pretrain.loss.scale,
        passes=passes,
    )

    def step_or_say(state: TrainState, batch: Batch) -> Watched:
        try:
            return step(state, batch)
        except torch.OutOfMemoryError as error:
            reason = str(error).partition(". ")[0]
            raise UserError(
                f"the batch does not fit on the device ({reason}).\n{CHOICES}"
            ) from error

    return step_or_say


def loss_of(pretrain: PretrainParams) -> ContrastiveLoss:
    chosen = pretrain.loss.model_dump(exclude={"scale"})
    return build_loss(temperature=pretrain.temperature, **chosen)
