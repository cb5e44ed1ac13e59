"""One optimizer step of each method; `fit` runs them.

Shapes: A anchors (views times images of the global batch), B images, P width of z, K classes.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.losses.build import ContrastiveLoss, build_loss, nt_xent_by_size
from stages.losses.distillation import distillation_loss, distillation_with_labels
from stages.losses.nt_xent import moco_loss
from stages.models.momentum import MomentumEncoder, NegativeQueue
from stages.optim.param_groups import supervised_head_decay
from stages.training.batches import Batch
from stages.training.gather import average_gradients, gather_rows, mean_over_processes
from stages.training.loop import Watched
from stages.training.micro_batches import Passes, embed, project
from stages.training.runtime import Runtime
from stages.training.state import TrainState

Step = Callable[[TrainState, Batch], Watched]
Answers = Callable[[Batch, Tensor], Tensor]  # a batch and its images BCHW to a teacher's logits BK


def contrastive_step(
    runtime: Runtime,
    temperature: float,
    precision: str,
    memory: str,
    loss_function: ContrastiveLoss | None = None,
    *,
    loss_scale: float = 1.0,
    passes: Passes | None = None,
) -> Step:
    """A contrastive loss over both views of the global batch (SimCLR, eq. 1; SimCLRv2, section 2).

    Args:
        runtime: device and processes.
        temperature: of the softmax.
        precision: of the network; the loss is float32 always.
        memory: "none"; "simclr": keys of the EMA copy, current and past, join every anchor's
            negatives; "moco": the current keys are positives, past keys the only negatives.
        loss_function: without a memory; None: NT-Xent at the temperature.
        loss_scale: what is minimised is the loss times it, what is watched is the loss. 2 is the
            official sum over both directions, against which weight decay weighs half as much.
        passes: in which the images go through the network; None: all at once. The loss is over
            all of them anyhow.
    """
    passes = passes or Passes()
    memoryless_loss = loss_function or build_loss("nt_xent", temperature)

    def step(state: TrainState, batch: Batch) -> Watched:
        views_VBCHW = batch.views_VBCHW.to(runtime.device, non_blocking=True)
        momentum_encoder, keys_VBP = state.beside.get("momentum_encoder"), None
        if memory != "none":
            assert isinstance(momentum_encoder, MomentumEncoder)
            if memory == "moco":
                momentum_encoder.update(state.model)
            keys_VBP = project(momentum_encoder, views_VBCHW, passes, runtime, precision)
            keys_VBP = F.normalize(keys_VBP, dim=2)
        embedded = embed(state.model, views_VBCHW, passes, runtime, precision)
        z0_BP, z1_BP = (gather_rows(z_BP, runtime) for z_BP in embedded.z_VBP)
        n_images = len(z0_BP)
        if keys_VBP is None:
            loss = memoryless_loss(z0_BP, z1_BP, rows=runtime.rows(n_images))
        else:
            queue = state.beside["queue"]
            assert isinstance(queue, NegativeQueue)
            keys_AP = torch.cat([gather_rows(keys_BP, runtime) for keys_BP in keys_VBP])
            if memory == "moco":
                mine = runtime.rows(n_images)
                loss = moco_loss(
                    F.normalize(z0_BP[mine], dim=1),
                    keys_AP[n_images:][mine],
                    queue.negatives(),
                    temperature,
                )
                queue.enqueue(keys_AP[n_images:])
            else:
                loss = nt_xent_by_size(
                    z0_BP,
                    z1_BP,
                    temperature,
                    current_keys_AP=keys_AP,
                    queue_QP=queue.negatives(),
                    rows=runtime.rows(n_images),
                )
                queue.enqueue(keys_AP)
        _update(state, runtime, partial(embedded.backward, loss * loss_scale))
        if memory == "simclr" and isinstance(momentum_encoder, MomentumEncoder):
            momentum_encoder.update(state.model)
        return {
            "loss": mean_over_processes(loss.detach(), runtime),
            "z0": z0_BP.detach(),
            "z1": z1_BP.detach(),
        }

    return step


def classify_step(runtime: Runtime, precision: str = "float32", *, head_decay: float = 0.0) -> Step:
    """Cross entropy on labelled images, the whole network trained.

    Args:
        runtime: device and processes.
        precision: of the network; the loss is float32 always.
        head_decay: weight decay of the classifier's kernel by a term of the loss, for LARS, which
            leaves the classifier out of its own (`supervised_head_decay`); not in what is watched.
    """

    def step(state: TrainState, batch: Batch) -> Watched:
        images_BCHW = _one_view(batch, runtime)
        assert batch.classes_B is not None
        with runtime.autocast(precision):
            logits_BK = state.model(images_BCHW)
        classes_B = batch.classes_B.to(runtime.device, non_blocking=True)
        loss = F.cross_entropy(logits_BK.float(), classes_B)
        decay = supervised_head_decay(state.model, head_decay) if head_decay else 0.0
        _update(state, runtime, (loss + decay).backward)
        return {"loss": loss.detach()}

    return step


def several_classes_step(runtime: Runtime, targets_NK: Tensor, precision: str = "float32") -> Step:
    """Images of several classes each: a logistic loss per class, summed over the classes.

    Args:
        runtime: device and processes.
        targets_NK: whether an image, by its position in the store, is of a class.
        precision: of the network; the loss is float32 always.
    """
    targets_NK = targets_NK.float()

    def step(state: TrainState, batch: Batch) -> Watched:
        images_BCHW = _one_view(batch, runtime)
        targets_BK = targets_NK[torch.from_numpy(batch.positions_B)]
        targets_BK = targets_BK.to(runtime.device, non_blocking=True)
        with runtime.autocast(precision):
            logits_BK = state.model(images_BCHW)
        losses_BK = F.binary_cross_entropy_with_logits(
            logits_BK.float(), targets_BK, reduction="none"
        )
        loss = losses_BK.sum(dim=1).mean()
        _update(state, runtime, loss.backward)
        return {"loss": loss.detach()}

    return step


def distill_step(
    runtime: Runtime,
    teacher: Answers,
    temperature: float,
    label_share: float,
    precision: str = "float32",
    *,
    scale_by_temperature_squared: bool = True,
) -> Step:
    """The student learns the teacher's soft labels (SimCLRv2, eq. 2 and 3).

    Args:
        runtime: device and processes.
        teacher: gives its logits; see `teachers`.
        temperature: of both softmaxes.
        label_share: weight of the true labels, which only labelled images have (class >= 0).
        precision: of the student.
        scale_by_temperature_squared: as the official notebook, see `distillation_loss`.
    """

    def step(state: TrainState, batch: Batch) -> Watched:
        images_BCHW = _one_view(batch, runtime)
        teacher_logits_BK = teacher(batch, images_BCHW)
        with runtime.autocast(precision):
            logits_BK = state.model(images_BCHW).float()
        if label_share > 0 and batch.classes_B is not None:
            loss = distillation_with_labels(
                logits_BK,
                teacher_logits_BK,
                batch.classes_B.to(runtime.device, non_blocking=True),
                temperature,
                1 - label_share,
                scale_by_temperature_squared=scale_by_temperature_squared,
            )
        else:
            loss = distillation_loss(
                logits_BK,
                teacher_logits_BK,
                temperature,
                scale_by_temperature_squared=scale_by_temperature_squared,
            )
        _update(state, runtime, loss.backward)
        return {"loss": loss.detach()}

    return step


def _one_view(batch: Batch, runtime: Runtime) -> Tensor:
    return runtime.arrange(batch.views_VBCHW[0].to(runtime.device, non_blocking=True))


def _update(state: TrainState, runtime: Runtime, backward: Callable[[], object]) -> None:
    state.optimizer.zero_grad(set_to_none=True)
    backward()
    average_gradients(state.model, runtime)
    state.optimizer.step()
