"""Learn the encoder f and the projection head g without labels (SimCLRv2, section 2)."""

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.data.store import ImageStore
from stages.errors import UserError, run_stage, say
from stages.importing.start import network_to_start_from
from stages.models.simclr import SimCLR
from stages.optim.schedules import scaled_lr
from stages.params import Params, load_params
from stages.records import write_record
from stages.sections.kinds import duration_in_steps
from stages.sections.pretraining import WATCHING, PretrainParams
from stages.training.alike import ending_alike
from stages.training.batches import ViewLoader
from stages.training.fingerprint import fingerprint
from stages.training.launch import relaunched
from stages.training.online_probe import open_online_probe
from stages.training.pretraining import (
    build_state,
    load_views,
    loss_of,
    open_store,
    passes_of,
    step_of,
)
from stages.training.products import write_product
from stages.training.recipes import architecture_of, start_runtime
from stages.training.recovery import Guard
from stages.training.runtime import Runtime
from stages.training.session import Session, write_curve
from stages.training.sizes import of_size, pretrained_of, pretraining_of
from stages.training.sole import sole_trainer
from stages.training.state import TrainState
from stages.training.watch import contrastive_watch

MEASURED_IMAGES = 256  # on which a network that was taken over is measured
VIEWS_AT_ONCE = 64


def main(size: str | None = None) -> None:
    params = of_size(load_params(), size)
    pretrain, item = params.pretrain, pretraining_of(size)
    if pretrain.init_from is not None:
        take_over(params, Path(pretrain.init_from))
        return
    if relaunched("stages.pretrain", params.runtime, ["--size", size] if size else []):
        return
    runtime = start_runtime(params)
    with ending_alike(runtime), sole_trainer(Path("runs") / item, runtime):
        train(params, item, runtime)
        runtime.stop()


def train(params: Params, item: str, runtime: Runtime) -> None:
    """This process's share of the training; the main process writes what comes of it."""
    pretrain = params.pretrain
    store = open_store(params)
    loader = load_views(params, store, runtime, pretrain.batch_size)
    architecture = architecture_of(params)
    recompute = params.runtime.recompute
    state = build_state(pretrain, architecture, loader.batch_size, runtime, recompute)
    passes = passes_of(params, state, loader, runtime, Path("runs") / item)
    session = plan_session(params, store, loader, item)
    with runtime.compiled(state.model, *state.beside.values()):
        session.run(
            runtime,
            state,
            loader.batches,
            step_of(pretrain, runtime, passes),
            lambda watched: contrastive_watch(watched, pretrain.temperature),
            loader.waited,
            open_online_probe(params, store.n_images, loader.batch_size, runtime),
        )
    if runtime.is_main:
        finish(params, state, store, session, architecture)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.pretrain", description=__doc__)
    parser.add_argument("--size", help="one of sizes.encoders (default: pretrain.encoder)")
    return parser.parse_args()


def plan_session(
    params: Params, store: ImageStore, loader: ViewLoader, item: str = "pretrain"
) -> Session:
    pretrain, runtime = params.pretrain, params.runtime
    n_images, batch_size = store.n_images, loader.batch_size
    return Session(
        name=item,
        folder=Path("runs") / item,
        fingerprint=fingerprint(
            params=pretrain.model_dump(exclude=set(WATCHING)),
            image_size=params.data.image_size,
            channels=params.data.channels,
            shuffle_shards=params.data.shuffle_shards,
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
        guard=Guard(
            keeps_start=True,
            rolls_back=pretrain.on_non_finite == "rollback",
            mark_every_steps=duration_in_steps(pretrain.rollback.every, n_images, batch_size),
            lr_factor=pretrain.rollback.lr_factor,
            most_rollbacks=pretrain.rollback.at_most,
            stops_at_collapse=pretrain.on_collapse == "stop",
            out_dim=pretrain.head.out_dim,
        ),
        tensorboard=runtime.tensorboard,
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
        **mixing_of(params, store, session.batch_size),
        "rollbacks": sum(event["kind"] == "rollback" for event in state.events),
    }
    leave(
        params,
        state.model,
        architecture,
        store,
        state.curve,
        numbers,
        {},
        state.events,
        session.name,
    )
    shutil.rmtree(session.folder, ignore_errors=True)


def mixing_of(params: Params, store: ImageStore, batch_size: int) -> dict[str, float]:
    """How diverse batches were, where images were not shuffled over all shards."""
    if params.data.shuffle_shards is None:
        return {}
    mixing = store.mixing(store.order(params.pretrain.seed), batch_size)
    return {
        "shards_per_batch": mixing.shards_per_batch,
        "shards_per_batch_of_full_shuffle": mixing.of_full_shuffle,
    }


def take_over(params: Params, folder: Path) -> None:
    """Put another network in the place of pretraining; it is measured, and not trained."""
    if folder.resolve().is_relative_to(pretrained_of(None).resolve()):
        raise UserError(
            f"pretrain.init_from is {folder}, which this stage itself writes.\n"
            "  Copy it to a folder elsewhere, and name that."
        )
    begun = time.perf_counter()
    runtime = start_runtime(params)
    if runtime.is_main:
        alone = Runtime(runtime.device)
        architecture = architecture_of(params)
        start = network_to_start_from(folder, architecture, params.pretrain.seed)
        store = open_store(params)
        loader = load_views(params, store, alone, min(params.pretrain.batch_size, MEASURED_IMAGES))
        row = measure(alone.place(start.model), loader, params.pretrain, alone)
        numbers = {
            **{name: value for name, value in row.items() if name not in {"step", "epoch", "lr"}},
            "steps": 0,
            "images": 0,
            "seconds": round(time.perf_counter() - begun, 1),
            "waited_share": 0.0,
        }
        origin = {**start.origin, "fresh_head": start.fresh_head}
        leave(params, start.model, architecture, store, [row], numbers, origin)
        say(f"pretrain: took over {folder}, as pretrain.init_from says; nothing was trained")
    runtime.stop()


def measure(
    model: SimCLR, loader: ViewLoader, pretrain: PretrainParams, runtime: Runtime
) -> dict[str, float]:
    """The row of a curve for a network as it is, in inference mode, on views of this data."""
    views_ACHW = loader.batch(0).views_VBCHW.flatten(0, 1)
    loss = loss_of(pretrain)
    model.eval()
    begun = time.perf_counter()
    with torch.inference_mode():
        z_AP = torch.cat(
            [
                model(part.to(runtime.device, memory_format=torch.channels_last)).float()
                for part in views_ACHW.split(VIEWS_AT_ONCE)
            ]
        )
        seconds = time.perf_counter() - begun
        if not bool(z_AP.isfinite().all()):
            raise UserError(
                f"the network of pretrain.init_from ({pretrain.init_from}) gives values that are "
                "not finite on these images.\n  Its weights can't be used; name another."
            )
        z0_BP, z1_BP = z_AP.chunk(2)
        watched = {"loss": loss(z0_BP, z1_BP, rows=slice(None)), "z0": z0_BP, "z1": z1_BP}
        seen = contrastive_watch(watched, pretrain.temperature)
    rate = round(len(z0_BP) / seconds, 1)
    return {"step": 0, "epoch": 0.0, **seen, "lr": 0.0, "images_per_second": rate}


def leave(
    params: Params,
    model: nn.Module,
    architecture: Mapping[str, Any],
    store: ImageStore,
    curve: Sequence[Mapping[str, float]],
    numbers: Mapping[str, float],
    origin: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]] = (),
    item: str = "pretrain",
) -> None:
    """Write curve, product and numbers.

    `origin` says where the network is from, if not trained; `events` what befell the training.
    """
    write_curve(Path("plots") / f"{item}.csv", curve)
    card: dict[str, Any] = {
        "params": params.pretrain.model_dump(),
        "data_fingerprint": store.fingerprint,
    }
    card |= {"origin": origin} if origin else {}
    card |= {"events": list(events)} if events else {}
    write_product(
        Path("artifacts") / item,
        model,
        architecture,
        stage="pretrain",
        **card,
        metrics=numbers,
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_record(item, numbers, card)


if __name__ == "__main__":
    run_stage(partial(main, parse_arguments().size))
