"""Training a classifier on labelled images, or a student on a teacher's soft labels."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.data.evaluation_views import EvaluationRecipe
from stages.data.store import ImageStore
from stages.errors import UserError
from stages.evaluation.classify import accuracy, scores
from stages.evaluation.features import outputs
from stages.evaluation.predictions import Answers, reliability
from stages.optim.schedules import scaled_lr
from stages.params import Params
from stages.sections.kinds import duration_in_steps
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import ViewParams
from stages.training.batches import Batch, Images, ViewLoader
from stages.training.images import open_images
from stages.training.loading import loader_of
from stages.training.recipes import evaluation_recipe, optimizer_for, view_recipe
from stages.training.runtime import Runtime
from stages.training.session import Session
from stages.training.state import TrainState
from stages.training.steps import Step
from stages.training.watch import loss_watch

# A loader to its batches of steps start..stop.
Beside = Callable[[ViewLoader], Callable[[int, int], Iterator[Batch]]]


@dataclass(frozen=True)
class Schooling:
    """How a classifier learns: length, batch, crops and optimizer.

    Attributes:
        duration: like "300 steps"; epochs are of the images it learns from.
        warmup: likewise, or None.
        batch_size: images per step; all images, where there are fewer.
        views: what an image is seen as.
        optimizer: name, learning rate and the rest.
        seed: decides order and crops.
    """

    duration: str
    warmup: str | None
    batch_size: int
    views: ViewParams
    optimizer: OptimizerParams
    seed: int

    @property
    def head_decay(self) -> float:
        """For `classify_step`: the classifier's weight decay, where it isn't the optimizer's."""
        return self.optimizer.weight_decay if self.optimizer.name == "lars" else 0.0

    def train(
        self,
        name: str,
        model: nn.Module,
        store: Images,
        train_step: Step,
        params: Params,
        runtime: Runtime,
        folder: Path,
        fingerprint: str,
        beside: Beside | None = None,
    ) -> TrainState:
        """Train `model` on the images of `store`; continues a working state in `folder`.

        `beside` adds to the batches what `train_step` needs more than labelled images.
        """
        batch_size = min(self.batch_size, store.n_images)
        total_steps = duration_in_steps(self.duration, store.n_images, batch_size)
        warmup_steps = (
            duration_in_steps(self.warmup, store.n_images, batch_size) if self.warmup else 0
        )
        recipe = view_recipe(self.views, params.data.image_size)
        load = loader_of(params, runtime)
        loader = load(store, recipe, batch_size, n_views=1, seed=self.seed)
        peak_lr = scaled_lr(self.optimizer.base_lr, batch_size, self.optimizer.lr_scaling)
        fused = runtime.fused_optimizer
        optimizer = optimizer_for(model, self.optimizer, batch_size, fused=fused)
        state = TrainState(model, optimizer)
        session = Session(
            name=name,
            folder=folder,
            fingerprint=fingerprint,
            total_steps=total_steps,
            warmup_steps=min(warmup_steps, total_steps // 2),
            peak_lr=peak_lr,
            batch_size=batch_size,
            steps_per_epoch=loader.steps_per_epoch,
            save_every_seconds=params.runtime.save_every_seconds,
            log_every_steps=params.runtime.log_every_steps,
            tensorboard=params.runtime.tensorboard,
        )
        model.train()
        batches = loader.batches if beside is None else beside(loader)
        with runtime.compiled(model):
            session.run(runtime, state, batches, train_step, loss_watch, loader.waited)
        return state


def open_split(split: str, params: Params, *, keys: list[str] | None = None) -> ImageStore:
    """A split of data/shards with its labels; `keys` names a part of it."""
    return open_images(params, split, with_labels=True, keys=keys)


@dataclass(frozen=True)
class Examiner:
    """Scores classifiers: validation chooses, test reports.

    Attributes:
        validation: labelled images set apart to choose with.
        open_test: opens the test split; called once, when something is reported.
        seen_as: evaluation views.
        runtime: device.
    """

    validation: ImageStore
    open_test: Callable[[], ImageStore]
    seen_as: EvaluationRecipe
    runtime: Runtime

    @classmethod
    def open(cls, params: Params, runtime: Runtime) -> "Examiner":
        return cls(
            open_split("validation", params),
            lambda: open_split("test", params),
            evaluation_recipe(params),
            runtime,
        )

    def choose(self, model: nn.Module) -> float:
        """Validation accuracy, the only figure a choice may look at."""
        return accuracy(*self._on(self.validation, model))

    def report(self, models: list[nn.Module]) -> "Examination":
        """Each finished model on the test split, which is opened here and nowhere else."""
        test = self.open_test()
        rows, answers = [], []
        for model in models:
            begun = time.perf_counter()
            on_validation = self._on(self.validation, model)
            logits_NK, classes_N = self._on(test, model)
            answers.append(Answers.of(logits_NK))
            on_test = scores(logits_NK, classes_N, on_validation)
            rows.append(
                {
                    "test_accuracy": on_test.pop("accuracy"),
                    "validation_accuracy": accuracy(*on_validation),
                    **on_test,
                    "reliability": reliability(answers[-1], classes_N),
                    "examination_seconds": round(time.perf_counter() - begun, 2),
                }
            )
        return Examination(test, rows, answers)

    def _on(self, store: ImageStore, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and classes (N,) of a store."""
        logits_NK = outputs(model, store, self.seen_as, self.runtime.device)
        return logits_NK, torch.from_numpy(store.classes)


@dataclass(frozen=True)
class Examination:
    """What the test split said of some models.

    Attributes:
        test: its images.
        rows: scores of each model.
        answers: of each model.
    """

    test: ImageStore
    rows: list[dict[str, Any]]
    answers: list[Answers]


def labelled_keys(fraction: str, seed: int) -> list[str]:
    """The keys of a stored label subset.

    Raises:
        UserError: it has not been drawn.
    """
    path = Path("data/subsets") / fraction / f"seed-{seed}.txt"
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there: that label subset has not been drawn.\n"
            f"  Name {fraction} in finetune.label_fractions and run: dvc repro subsets@{fraction}"
        ) from None
