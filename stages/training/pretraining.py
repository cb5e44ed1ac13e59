"""Contrastive pretraining put together from its params: images, views, network, step."""

from typing import Any

import torch.distributed as dist
from torch import nn

from stages.data.store import ImageStore
from stages.losses.build import ContrastiveLoss, build_loss
from stages.models.batch_norm import use_global_batch_norm
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import build_encoder, build_simclr
from stages.params import Params, PretrainParams
from stages.training.batches import ViewLoader
from stages.training.images import open_images
from stages.training.products import seeded
from stages.training.recipes import optimizer_for, view_recipe
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import Step, contrastive_step


def open_store(params: Params) -> ImageStore:
    return open_images(params, "train", with_labels=False)


def load_views(params: Params, store: ImageStore, runtime: Runtime, batch_size: int) -> ViewLoader:
    """This process's share of batches of two views of each image."""
    batch_size = min(batch_size, store.n_images)
    return ViewLoader(
        store,
        view_recipe(params.pretrain.views, params.data.image_size),
        batch_size,
        n_views=2,
        seed=params.pretrain.seed,
        rows=runtime.rows(batch_size),
    )


def build_state(
    pretrain: PretrainParams, architecture: dict[str, Any], batch_size: int, runtime: Runtime
) -> TrainState:
    """Freshly initialised model, optimizer and, where asked for, momentum memory."""
    seeded(pretrain.seed)
    encoder = build_encoder(**architecture["encoder"], in_channels=architecture["channels"])
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
    if runtime.world_size > 1:
        for module in (model, *beside.values()):
            use_global_batch_norm(module, dist.group.WORLD)
    model.train()
    return TrainState(model, optimizer_for(model, pretrain.optimizer, batch_size), beside=beside)


def step_of(pretrain: PretrainParams, runtime: Runtime) -> Step:
    """One optimizer step."""
    return contrastive_step(
        runtime,
        pretrain.temperature,
        pretrain.precision,
        pretrain.memory.kind,
        loss_of(pretrain),
        loss_scale=pretrain.loss.scale,
    )


def loss_of(pretrain: PretrainParams) -> ContrastiveLoss:
    chosen = pretrain.loss.model_dump(exclude={"scale"})
    return build_loss(temperature=pretrain.temperature, **chosen)
