"""Fine-tuning on another data set: every setting of a grid, the best on validation kept (v1, B.8).

Shapes: N images, B a batch of them, K classes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.data.evaluation_views import EvaluationRecipe
from stages.data.listed import ListedImages
from stages.evaluation.features import EVALUATION_BATCH
from stages.evaluation.other_datasets import LabelledImages
from stages.evaluation.transfer_scores import score
from stages.models.batch_norm import use_momentum
from stages.params import Params
from stages.sections.optimizer import OptimizerParams
from stages.sections.transfer import TransferTraining
from stages.training.classifier import Schooling
from stages.training.fingerprint import fingerprint
from stages.training.runtime import Runtime
from stages.training.steps import Step, classify_step, several_classes_step


@dataclass(frozen=True)
class Setting:
    """One point of the grid; the weight decay is the optimizer's."""

    base_lr: float
    weight_decay: float


def grid(recipe: TransferTraining) -> Iterator[Setting]:
    """Every learning rate with every weight decay."""
    decays = [*([0.0] if recipe.no_weight_decay else []), *recipe.weight_decay_grid]
    for lr in recipe.lr_grid:
        for decay in decays:
            yield Setting(lr, decay / lr if recipe.decay_over_lr else decay)


def momentum_of(n_images: int, batch_size: int) -> float:
    """Share of a new batch in the moving statistics: 1 - max(1 - 10 / s, 0.9), s steps an epoch."""
    return 1 - max(1 - 10 / math.ceil(n_images / batch_size), 0.9)


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning of one network on one data set.

    Attributes:
        name: of the working states, and in the log.
        images: the data set.
        start: makes the network, a new classifier on it, the same each time.
        recipe: grid and lengths.
        origin: what its first weights are known by.
        seen_as: evaluation views.
    """

    name: str
    images: LabelledImages
    start: Callable[[], nn.Module]
    recipe: TransferTraining
    origin: str
    seen_as: EvaluationRecipe
    params: Params
    runtime: Runtime

    def run(self) -> tuple[Tensor, dict[str, Any]]:
        """Logits of the test images after training and validation images were learnt, and how.

        Validation chooses the setting; the network is then trained anew on both.
        """
        split = self.images.split
        tried = []
        for number, setting in enumerate(grid(self.recipe)):
            model = self._train(f"setting-{number}", setting, split["train"])
            found = score(self.images, self.logits(model, split["validation"]), split["validation"])
            tried.append({**vars(setting), "validation_score": found})
        best = max(tried, key=lambda one: one["validation_score"])
        setting = Setting(best["base_lr"], best["weight_decay"])
        model = self._train("chosen", setting, torch.cat([split["train"], split["validation"]]))
        details = {
            "validation_score": best["validation_score"],
            "chosen": {**vars(setting), "duration": self.recipe.duration},
            "tried": tried,
        }
        return self.logits(model, split["test"]), details

    def logits(self, model: nn.Module, positions_N: Tensor) -> Tensor:
        model.eval()
        rows = []
        with torch.inference_mode():
            for chunk in positions_N.split(EVALUATION_BATCH):
                shown = self.seen_as(self.images.at(chunk.tolist()))
                shown = shown.to(self.runtime.device, memory_format=torch.channels_last)
                rows.append(model(shown).float().cpu())
        return torch.cat(rows)

    def _train(self, name: str, setting: Setting, positions_N: Tensor) -> nn.Module:
        model = self.runtime.place(self.start())
        places = positions_N.tolist()
        targets = self.images.targets[positions_N]
        listed = ListedImages(
            [self.images.keys[place] for place in places],
            lambda number: self.images.image(places[number]),
            targets if self.images.has_one_class_each else None,
        )
        use_momentum(model, momentum_of(len(places), self.recipe.batch_size))
        schooling = self._schooling(setting)
        schooling.train(
            f"{self.name} {name}",
            model,
            listed,
            self._step(targets),
            self.params,
            self.runtime,
            Path("runs") / self.name / name,
            fingerprint(
                schooling=str(schooling),
                keys=listed.keys,
                classes=targets.tolist(),
                origin=self.origin,
                precision=self.recipe.precision,
                image_size=self.params.data.image_size,
            ),
        )
        return model

    def _schooling(self, setting: Setting) -> Schooling:
        optimizer = OptimizerParams(
            name="sgd", base_lr=setting.base_lr, weight_decay=setting.weight_decay
        )
        recipe = self.recipe
        return Schooling(
            duration=recipe.duration,
            warmup=None,
            batch_size=recipe.batch_size,
            views=recipe.views,
            optimizer=optimizer,
            seed=self.params.transfer.seed,
        )

    def _step(self, targets: Tensor) -> Step:
        if self.images.has_one_class_each:
            return classify_step(self.runtime, self.recipe.precision)
        return several_classes_step(self.runtime, targets, self.recipe.precision)
