"""Learn the encoder f and the projection head g without labels (SimCLRv2, section 2)."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from stages.data.store import ImageStore
from stages.errors import run_stage
from stages.losses.build import build_loss
from stages.models.batch_norm import use_global_batch_norm
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.models.simclr import build_encoder, build_simclr
from stages.optim.schedules import scaled_lr
from stages.params import Params, PretrainParams, duration_in_steps, load_params
from stages.records import write_record
from stages.training.batches import ViewLoader
from stages.training.fingerprint import fingerprint
from stages.training.launch import relaunched
from stages.training.products import seeded, write_product
from stages.training.recipes import architecture_of, optimizer_for, view_recipe
from stages.training.runtime import Runtime
from stages.training.session import Session, write_curve
from stages.training.state import TrainState
from stages.training.steps import contrastive_step
from stages.training.watch import contrastive_watch

SHARDS, PRODUCT, WORKDIR = Path("data/shards"), Path("artifacts/pretrain"), Path("runs/pretrain")


def main() -> None:
    params = load_params()
    pretrain = params.pretrain
    if relaunched("stages.pretrain", params.runtime.processes):
        return
    runtime = Runtime.start(params.runtime.device, params.runtime.threads)
    store = ImageStore.open(
        SHARDS,
        "train",
        with_labels=False,
        channels=params.data.channels,
        max_pixels=params.data.max_pixels,
    )
    batch_size = min(pretrain.batch_size, store.n_images)
    loader = ViewLoader(
        store,
        view_recipe(pretrain.views, params.data.image_size),
        batch_size,
        n_views=2,
        seed=pretrain.seed,
        rows=runtime.rows(batch_size),
    )
    architecture = architecture_of(params)
    state = build_state(pretrain, architecture, loader.batch_size, runtime)
    session = plan_session(params, store, loader)
    session.run(
        runtime,
        state,
        loader.batches,
        contrastive_step(
            runtime,
            pretrain.temperature,
            pretrain.precision,
            pretrain.memory.kind,
            build_loss(temperature=pretrain.temperature, **pretrain.loss.model_dump()),
        ),
        lambda watched: contrastive_watch(watched, pretrain.temperature),
        loader.waited,
    )
    if runtime.is_main:
        finish(params, state, store, session, architecture)
    runtime.stop()


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


def plan_session(params: Params, store: ImageStore, loader: ViewLoader) -> Session:
    pretrain, runtime = params.pretrain, params.runtime
    n_images, batch_size = store.n_images, loader.batch_size
    return Session(
        name="pretrain",
        folder=WORKDIR,
        fingerprint=fingerprint(
            params=pretrain.model_dump(),
            image_size=params.data.image_size,
            channels=params.data.channels,
            data=store.fingerprint,
        ),
        total_steps=duration_in_steps(pretrain.duration, n_images, batch_size),
        warmup_steps=(
            duration_in_steps(pretrain.warmup, n_images, batch_size) if pretrain.warmup else 0
        ),
        peak_lr=scaled_lr(pretrain.optimizer.base_lr, batch_size, pretrain.optimizer.lr_scaling),
        batch_size=batch_size,
        steps_per_epoch=loader.steps_per_epoch,
        save_every_seconds=runtime.save_every_seconds,
        log_every_steps=runtime.log_every_steps,
    )


def finish(
    params: Params,
    state: TrainState,
    store: ImageStore,
    session: Session,
    architecture: dict[str, Any],
) -> None:
    """Write product, numbers and curve; then the working state may go."""
    last = state.curve[-1]
    images = session.total_steps * session.batch_size
    numbers = {
        **{name: value for name, value in last.items() if name not in {"step", "epoch", "lr"}},
        "steps": session.total_steps,
        "images": images,
        "seconds": round(state.seconds, 1),
        "images_per_second": round(images / state.seconds, 1),
        "waited_share": round(state.waited_seconds / state.seconds, 4),
    }
    write_curve(Path("plots/pretrain.csv"), state.curve)
    write_product(
        PRODUCT,
        state.model,
        architecture,
        stage="pretrain",
        params=params.pretrain.model_dump(),
        data_fingerprint=store.fingerprint,
        metrics=numbers,
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_record(
        "pretrain",
        numbers,
        {"params": params.pretrain.model_dump(), "data_fingerprint": store.fingerprint},
    )
    shutil.rmtree(WORKDIR, ignore_errors=True)


if __name__ == "__main__":
    run_stage(main)
