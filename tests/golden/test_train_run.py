"""The official program's own run: some pretraining steps, evaluation, export, fine-tunings.

Our steps (`contrastive_step`, `classify_step`) start from the stored weights and see the stored
images; what the program stored after each step is compared. Weights hardly move (the trust ratio
is 0.001), so updates are compared: the difference from the stored update over its size.

A ReLU whose input is within rounding of 0 is open in one run and shut in another, which moves
every gradient below it by 1e-3 and more, and the steps after it by ten times that. Hence:

- The last step of pretraining starts from the stored weights and momentum, not from ours.
- All is also run with batch norm's sums in the official order (one value after the other, in
  float32, which loses up to 5e-5 of a variance), so that nearly all ReLUs agree.
- Where something is still off by more than its limit, the limit is what rounding can do: the
  largest change in such runs whose images are off by `NOISE`, the worst variable held against the
  worst, the second against the second, and so on, for it is chance which ReLU is at 0.

The folder is GOLDEN_DIR's; any set of the same format will do.

Shapes: T steps, B images, C channels, H W pixels, P width of z, K classes.
"""

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.importing.verify import ALONG_THE_WAY
from stages.losses.nt_xent import contrastive_accuracy_and_entropy
from stages.models.batch_norm import EPSILON, BatchNorm
from stages.models.heads import LinearClassifier
from stages.models.official_names import OfficialVariable, official_variables
from stages.models.resnet import Stem
from stages.models.simclr import SimCLR, build_classifier, build_encoder, build_simclr
from stages.optim.build import build_optimizer
from stages.optim.lars import BUFFER
from stages.optim.param_groups import supervised_head_decay
from stages.optim.schedules import (
    official_total_steps,
    official_warmup_steps,
    scaled_lr,
    warmup_cosine,
)
from stages.training.batches import Batch
from stages.training.loop import Watched, fit
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import Step, classify_step, contrastive_step

pytestmark = pytest.mark.golden

FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "data") / "train_run"
CPU = Runtime(torch.device("cpu"))
OFFICIAL_IS_TWICE = 2  # its NT-Xent adds the means of the two directions
OPTIMIZERS: dict[str, Literal["lars", "sgd"]] = {"lars": "lars", "momentum": "sgd"}

LR = 1e-6
LOSSES = 3e-4
UPDATES = 5e-4  # per variable; the set's README allows 2e-3, and 2e-2 in fine-tuning
DECAY = 2e-2  # of a difference of weights that float32 knows to some thousandths
SAVED_OUTPUTS = 5e-6
UNDECIDED = 1e-3  # of the largest logit: the side of the border may be rounding's
NOISE = 1e-5  # of images in [0, 1]; sums of float32 lose as much in the official program
NOISY_RUNS = 10
TIMES_ROUNDING = 3

# Names of saved outputs that are not the official stages' (those are in `OUTPUTS`).
OUTPUTS = {
    **ALONG_THE_WAY,
    "proj_head_input": "h",
    "proj_head_output": "z",
    "logits_sup": "logits",
}


@dataclass(frozen=True)
class Run:
    """The stored run: settings and metrics, arrays, and the network's variables."""

    described: dict[str, Any]
    arrays: dict[str, np.ndarray]
    variables: list[OfficialVariable]

    @property
    def flags(self) -> dict[str, Any]:
        return self.described["flags"]

    @property
    def steps(self) -> int:
        return self.described["steps"]

    def values(self, folder: str) -> dict[str, Tensor]:
        """What is stored in a folder like "pretrain/step0", by official name."""
        return {
            key.removeprefix(f"{folder}/"): torch.from_numpy(value)
            for key, value in self.arrays.items()
            if key.startswith(f"{folder}/")
        }

    def network(self, folder: str) -> tuple[SimCLR, LinearClassifier]:
        """Encoder, projection head and supervised head with the weights of a folder."""
        flags, values = self.flags, self.values(folder)
        encoder = build_encoder(
            flags["resnet_depth"], flags["width_multiplier"], flags["sk_ratio"], stem_of(flags)
        )
        simclr = build_simclr(encoder, flags["num_proj_layers"], out_dim=flags["proj_out_dim"])
        linear = LinearClassifier(encoder.feature_dim, self.described["num_classes"])
        ours = {v.ours: v.to_ours(values[v.path]) for v in self.variables}
        supervised = {name: ours.pop(f"linear.{name}") for name in ("weight", "bias")}
        simclr.load_state_dict(ours)
        linear.load_state_dict(supervised)
        return simclr, linear

    def official(self, ours: dict[str, Tensor]) -> dict[str, Tensor]:
        """A copy of our values by official name and in official layout."""
        return {v.path: v.to_official(ours[v.ours]).clone() for v in self.variables}

    def batches(self, which: str, seed: int | None = None) -> list[Batch]:
        """Stored images, step by step, with noise of a seed; two views lie on the channel axis."""
        features_TBHWC = torch.from_numpy(self.arrays[f"{which}_features"]).float() / 256
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            features_TBHWC += NOISE * torch.randn(features_TBHWC.shape, generator=generator)
        labels_TB = torch.from_numpy(self.arrays[f"{which}_labels"]).long()
        return [
            Batch(
                torch.stack(images_BHWC.permute(0, 3, 1, 2).split(3, dim=1)),
                np.arange(len(labels_B)),
                labels_B,
            )
            for images_BHWC, labels_B in zip(features_TBHWC, labels_TB, strict=True)
        ]


def stem_of(flags: dict[str, Any]) -> Stem:
    return "small" if flags["image_size"] <= 32 else "imagenet"


@cache
def run() -> Run:
    described = json.loads((FOLDER / "run.json").read_text())
    flags = described["flags"]
    variables = official_variables(
        flags["resnet_depth"],
        sk=flags["sk_ratio"] > 0,
        stem=stem_of(flags),
        head_depth=flags["num_proj_layers"],
    )
    assert [(v.path, v.trainable) for v in variables] == [
        (stored["name"], stored["trainable"]) for stored in described["variables"]
    ]
    return Run(described, dict(np.load(FOLDER / "run.npz")), variables)


def finetunings() -> dict[str, dict[str, Any]]:
    return {finetuning["tag"]: finetuning for finetuning in run().described["finetune"]}


TAGS = sorted(finetunings()) if FOLDER.exists() else []


def lr_schedule(flags: dict[str, Any], total_steps: int, n_images: int) -> Callable[[int], float]:
    batch_size = flags["train_batch_size"]
    peak = scaled_lr(flags["learning_rate"], batch_size, flags["learning_rate_scaling"])
    warmup = official_warmup_steps(n_images, flags["warmup_epochs"], batch_size)
    return lambda step: warmup_cosine(step, peak, warmup, total_steps)


def pretraining_lr() -> Callable[[int], float]:
    flags, n_images = run().flags, run().described["num_train_examples_assumed"]
    total_steps = flags["train_steps"] or official_total_steps(
        n_images, flags["train_epochs"], flags["train_batch_size"]
    )
    return lr_schedule(flags, total_steps, n_images)


def finetuning_flags(tag: str) -> dict[str, Any]:
    """Those of pretraining but for the ones stored; fine-tuning has no warm-up."""
    return run().flags | {"warmup_epochs": 0} | finetunings()[tag]["flags"]


def finetuning_lr(tag: str) -> Callable[[int], float]:
    total_steps = len(finetunings()[tag]["lr_per_step"])
    n_images = run().described["num_train_examples_assumed"]
    return lr_schedule(finetuning_flags(tag), total_steps, n_images)


@dataclass(frozen=True)
class Stepped:
    """One of our steps: what was seen in it, and all values after it by official name."""

    seen: dict[str, Tensor]
    values: dict[str, Tensor]
    momentum: dict[str, Tensor]


Sums = Literal["ours", "official"]
SUMS: tuple[Sums, ...] = ("ours", "official")


@cache
def pretrained(sums: Sums, seed: int | None = None, *, unbroken: bool = False) -> list[Stepped]:
    """Our pretraining, step by step, with the official linear head beside it.

    Args:
        sums: batch norm's, see above.
        seed: of noise on the images; None: none.
        unbroken: don't set weights and momentum to the stored ones before the last step.
    """
    flags, weight_decay = run().flags, run().flags["weight_decay"]
    simclr, linear = run().network("pretrain/step0")
    simclr = CPU.place(simclr).train()
    optimizer = build_optimizer("lars", simclr, 0.0, weight_decay)
    head_optimizer = build_optimizer("lars", linear, 0.0, weight_decay)
    our_step = contrastive_step(
        CPU, flags["temperature"], "float32", "none", loss_scale=OFFICIAL_IS_TWICE
    )
    features: list[Tensor] = []
    simclr.encoder.register_forward_hook(lambda _module, _inputs, h_AD: features.append(h_AD))

    def parts() -> Parts:
        return (
            dict(simclr.state_dict()) | with_prefix(linear.state_dict()),
            dict(simclr.named_parameters()) | with_prefix(dict(linear.named_parameters())),
            optimizer.state | head_optimizer.state,
        )

    def step(state: TrainState, batch: Batch) -> Watched:
        if state.step == run().steps - 1 and not unbroken:
            set_to_stored(*parts()[1:])
        (lr,) = {group["lr"] for group in optimizer.param_groups}
        watched = our_step(state, batch)
        assert batch.classes_B is not None
        labels_A = batch.classes_B.repeat(2)
        logits_AK = linear(features.pop().detach())
        supervised_loss = F.cross_entropy(logits_AK, labels_A)
        decay = torch.as_tensor(supervised_head_decay(linear, weight_decay))
        head_optimizer.zero_grad()
        (supervised_loss + decay).backward()
        for group in head_optimizer.param_groups:
            group["lr"] = lr
        head_optimizer.step()
        return {
            **watched,
            "supervised_loss": supervised_loss.detach(),
            "weight_decay": decay.detach(),
            "logits": logits_AK.detach(),
            "labels": labels_A,
        }

    with batch_norm_with(sums):
        state = TrainState(simclr, optimizer)
        return steps_of(state, run().batches("pretrain", seed), step, pretraining_lr(), parts)


def before_the_last_step() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and momentum before the last of three steps, of which the first had lr 0.

    The last momentum is the last update, and the second one what was left of all updates.
    """
    assert run().steps == 3
    assert pretraining_lr()(0) == 0
    start, last = run().values("pretrain/step0"), run().values(last_checkpoint())
    momentum = run().values(f"{last_checkpoint()}_momentum")
    weights = {name: last[name] + value for name, value in momentum.items()}
    return weights, {name: start[name] - value for name, value in weights.items()}


def set_to_stored(parameters: dict[str, nn.Parameter], optimizer_state: dict[Any, Any]) -> None:
    weights, momentum = before_the_last_step()
    for v in run().variables:
        if v.trainable:
            parameter = parameters[v.ours]
            parameter.data.copy_(v.to_ours(weights[v.path]))
            optimizer_state[parameter][BUFFER].copy_(v.to_ours(momentum[v.path]))


@contextmanager
def batch_norm_with(sums: Sums) -> Generator[None, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        if sums == "official":
            patch.setattr(BatchNorm, "_normalise_by_batch", normalise_by_official_sums)
        yield


def normalise_by_official_sums(norm: BatchNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stands in for `BatchNorm._normalise_by_batch`: its gradient, TensorFlow's values on a CPU.

    The mean of squares less the square of the mean, of sums that add one position after the other.
    """
    axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
    rows_NC = np.ascontiguousarray(x.detach().movedim(1, -1).reshape(-1, x.shape[1]).numpy())
    sums_2C = np.stack([np.add.reduce(rows_NC), np.add.reduce(rows_NC * rows_NC)])
    official_mean_C, official_square_C = torch.from_numpy(sums_2C / np.float32(len(rows_NC)))
    official_variance_C = official_square_C - official_mean_C.square()
    mean_C, variance_C = x.mean(axes), x.var(axes, correction=0)
    mean_C = mean_C + (official_mean_C - mean_C).detach()
    variance_C = variance_C + (official_variance_C - variance_C).detach()
    scale_C = norm.weight * torch.rsqrt(variance_C + EPSILON)
    offset_C = -mean_C * scale_C if norm.bias is None else norm.bias - mean_C * scale_C
    y = x * scale_C.view(shape) + offset_C.view(shape)
    return y, mean_C.detach(), variance_C.detach()


@cache
def finetuned(tag: str, sums: Sums, seed: int | None = None) -> list[Stepped]:
    """Our fine-tuning, step by step, from the stored pretrained weights, supervised head too.

    `sums` are batch norm's, `seed` is that of noise on the images.
    """
    flags = finetuning_flags(tag)
    simclr, linear = run().network(last_checkpoint())
    selector = flags["ft_proj_selector"]
    classifier = CPU.place(build_classifier(simclr, selector, run().described["num_classes"]))
    classifier.linear.load_state_dict(linear.state_dict())
    freeze(classifier.encoder, flags["fine_tune_after_block"])
    name, weight_decay = OPTIMIZERS[flags["optimizer"]], flags["weight_decay"]
    optimizer = build_optimizer(name, classifier, 0.0, weight_decay)
    head_decay = weight_decay if name == "lars" else 0.0
    our_step = classify_step(CPU, head_decay=head_decay)
    # The official code runs the layers of g above the selected one, too: their statistics move.
    unused = nn.Sequential(*list(simclr.head)[selector:]).train()
    logits: list[Tensor] = []

    def run_unused(_module: nn.Module, _inputs: object, kept: Tensor) -> None:
        unused(kept.detach())

    def remember(_module: nn.Module, _inputs: object, logits_BK: Tensor) -> None:
        logits.append(logits_BK.detach())

    classifier.head.register_forward_hook(run_unused)
    classifier.register_forward_hook(remember)

    def step(state: TrainState, batch: Batch) -> Watched:
        decay = torch.as_tensor(supervised_head_decay(classifier, head_decay)).detach()
        watched = our_step(state, batch)
        assert batch.classes_B is not None
        return {
            "supervised_loss": watched["loss"],
            "weight_decay": decay,
            "logits": logits.pop(),
            "labels": batch.classes_B,
        }

    # The classifier's layers are copies of those in simclr, but for the unused ones.
    def parts() -> Parts:
        values = dict(simclr.state_dict()) | dict(classifier.state_dict())
        return values, dict(classifier.named_parameters()), optimizer.state

    with batch_norm_with(sums):
        state = TrainState(classifier.train(), optimizer)
        return steps_of(state, run().batches("finetune", seed), step, finetuning_lr(tag), parts)


Parts = tuple[dict[str, Tensor], dict[str, nn.Parameter], dict[Any, Any]]


def steps_of(
    state: TrainState,
    batches: list[Batch],
    step: Step,
    lr_at: Callable[[int], float],
    parts: Callable[[], Parts],
) -> list[Stepped]:
    """Fit, and keep what there was after each step.

    Args:
        state: trained in place.
        batches: one a step.
        step: ours, with what is beside it.
        lr_at: learning rate of a step.
        parts: values, parameters and the optimizer's state at that moment.
    """
    kept: list[Stepped] = []

    def keep(_state: TrainState, watched: Watched) -> None:
        values, parameters, optimizer_state = parts()
        momentum = {
            v.path: v.to_official(optimizer_state[parameters[v.ours]][BUFFER]).clone()
            for v in run().variables
            if parameters.get(v.ours) in optimizer_state
        }
        kept.append(Stepped(dict(watched), run().official(values), momentum))

    fit(state, iter(batches), step, lr_at=lr_at, total_steps=len(batches), after_step=keep)
    return kept


def with_prefix(named: dict[str, Any]) -> dict[str, Any]:
    return {f"linear.{name}": value for name, value in named.items()}


def freeze(encoder: nn.Module, after_block: int) -> None:
    """As the official code's fine_tune_after_block: -1 nothing, 0 the stem, 4 all of f.

    Frozen batch norms go on in training mode, as its TF2 program has them.
    """
    groups = list(encoder.get_submodule("groups").children())
    frozen = [encoder.get_submodule("stem"), *groups][: after_block + 1]
    for part in frozen:
        part.requires_grad_(False)


def last_checkpoint() -> str:
    return f"pretrain/step{run().steps}"


def update_errors(
    ours: dict[str, Tensor], golden: dict[str, Tensor], before: dict[str, Tensor]
) -> dict[str, float]:
    """Per variable, how far our value is from the stored one, over how far that one has moved."""
    errors = {}
    for name, stored in golden.items():
        apart = (ours[name].double() - stored.double()).norm()
        moved = (stored.double() - before[name].double()).norm()
        errors[name] = (apart / moved).item() if apart > 0 else 0.0
    return errors


def assert_all_within(errors: dict[str, float], limits: float | dict[str, float]) -> None:
    assert errors
    each = limits if isinstance(limits, dict) else dict.fromkeys(errors, limits)
    assert {n: (error, each[n]) for n, error in errors.items() if not error <= each[n]} == {}


def assert_near(
    errors: dict[str, float], strict: float, noisy: Callable[[int], dict[str, float]]
) -> None:
    """All errors are within a limit, or as small as rounding lets them be.

    Args:
        errors: of ours from the stored, by what they are of.
        strict: limit of each.
        noisy: the errors of a run on noisy images, by seed, from ours on the stored ones.
    """
    assert errors
    if max(errors.values()) > strict:
        runs = [sorted(noisy(seed).values()) for seed in range(NOISY_RUNS)]
        limits = np.maximum(strict, TIMES_ROUNDING * np.max(runs, axis=0))
        ordered = sorted(errors.items(), key=lambda item: item[1])
        pairs = zip(ordered, limits, strict=True)
        assert [(name, e, limit) for (name, e), limit in pairs if not e <= limit] == []


def relative_errors(ours: dict[str, float], golden: dict[str, float]) -> dict[str, float]:
    return {
        name: abs(ours[name] - value) / max(abs(value), 1e-12) for name, value in golden.items()
    }


def assert_same_accuracy(logits_BK: Tensor, labels_B: Tensor, golden: float, top: int = 1) -> None:
    """Equal, but for images whose true class is within rounding of the border of the top k."""
    true_B1 = logits_BK.gather(1, labels_B[:, None])
    others_BK = logits_BK.scatter(1, labels_B[:, None], -torch.inf)
    margin_B = true_B1[:, 0] - others_BK.topk(top).values[:, -1]
    slack = UNDECIDED * logits_BK.abs().max()
    surely, perhaps = ((margin_B > bound).float().mean().item() for bound in (slack, -slack))
    assert surely - 1e-6 <= golden <= perhaps + 1e-6


def test_the_golden_set_has_a_training_run_with_finetunings():
    assert TAGS, f"no training run in {FOLDER}; set GOLDEN_DIR to a golden set"
    assert run().steps == len(run().batches("pretrain"))


def test_pretraining_lr_of_every_step_is_the_official_one():
    stored = run().described["lr_used_at_step_index"]
    ours = [pretraining_lr()(step) for step in range(len(stored))]
    np.testing.assert_allclose(ours, stored, rtol=LR, atol=LR * max(stored))


@pytest.mark.parametrize("tag", TAGS)
def test_finetuning_lr_of_every_step_is_the_official_one(tag: str):
    stored = finetunings()[tag]["lr_per_step"]
    ours = [finetuning_lr(tag)(step) for step in range(len(stored))]
    np.testing.assert_allclose(ours, stored, rtol=LR, atol=LR * max(stored))


def pretraining_losses(steps: list[Stepped]) -> dict[str, float]:
    """Every logged number of every step but the accuracies, by step and official name."""
    numbers = {}
    for number, stepped in enumerate(steps, start=1):
        seen = stepped.seen
        contrast = OFFICIAL_IS_TWICE * seen["loss"]
        _, entropy = contrastive_accuracy_and_entropy(
            seen["z0"], seen["z1"], run().flags["temperature"]
        )
        logged = {
            "contrast_loss": contrast,
            "contrast_entropy": entropy,
            "supervised_loss": seen["supervised_loss"],
            "weight_decay": seen["weight_decay"],
            "total_loss": contrast + seen["supervised_loss"] + seen["weight_decay"],
        }
        numbers |= {f"{number} train/{name}": value.item() for name, value in logged.items()}
    return numbers


@pytest.mark.parametrize("sums", SUMS)
def test_pretraining_losses_of_every_step_are_the_official_ones(sums: Sums):
    logged = [row for row in run().described["metrics_per_step"] if "train/total_loss" in row]
    assert [row["step"] for row in logged] == list(range(1, run().steps + 1))
    ours = pretraining_losses(pretrained(sums))
    assert_near(
        relative_errors(ours, {name: logged_under(name, logged) for name in ours}),
        LOSSES,
        lambda seed: relative_errors(pretraining_losses(pretrained("official", seed)), ours),
    )


def logged_under(name: str, rows: list[dict[str, float]]) -> float:
    """What was logged under a name like "3 train/total_loss"."""
    step, _, metric = name.partition(" ")
    return rows[int(step) - 1][metric]


@pytest.mark.parametrize("sums", SUMS)
def test_pretraining_accuracies_of_every_step_are_the_official_ones(sums: Sums):
    for row, stepped in zip(run().described["metrics_per_step"], pretrained(sums), strict=False):
        seen = stepped.seen
        cosines_BB = F.normalize(seen["z0"]) @ F.normalize(seen["z1"]).T
        assert_same_accuracy(cosines_BB, torch.arange(len(cosines_BB)), row["train/contrast_acc"])
        assert_same_accuracy(seen["logits"], seen["labels"], row["train/supervised_acc"])


@pytest.mark.parametrize("sums", SUMS)
def test_each_step_of_pretraining_updates_by_the_official_momentum(sums: Sums):
    """The momentum after a step is its update; what it was after the second is in the weights."""
    _, second = before_the_last_step()
    stored = {2: second, 3: run().values(f"{last_checkpoint()}_momentum")}
    assert set(second) == set(stored[3]) == {v.path for v in run().variables if v.trainable}
    for step, golden in stored.items():
        zero = {name: torch.zeros_like(value) for name, value in golden.items()}
        ours = pretrained(sums)[step - 1].momentum
        assert_near(
            update_errors(ours, golden, zero),
            UPDATES,
            lambda seed, step=step, ours=ours, zero=zero: update_errors(
                pretrained("official", seed)[step - 1].momentum, ours, zero
            ),
        )


@pytest.mark.parametrize("sums", SUMS)
def test_pretraining_moves_weights_and_statistics_as_officially(sums: Sums):
    folders = {key.split("/")[1].removeprefix("step") for key in run().arrays if "pretrain/" in key}
    stored_steps = sorted(int(step) for step in folders if step.isdigit())
    assert {0, run().steps} <= set(stored_steps)
    before = run().values("pretrain/step0")
    assert set(run().values(last_checkpoint())) == set(before)
    for step in stored_steps[1:]:
        golden, ours = run().values(f"pretrain/step{step}"), pretrained(sums)[step - 1].values
        ours = {name: ours[name] for name in golden}
        assert_near(
            update_errors(ours, golden, before),
            UPDATES,
            lambda seed, step=step, ours=ours: update_errors(
                pretrained("official", seed)[step - 1].values, ours, before
            ),
        )


def test_pretraining_in_one_go_ends_where_the_official_run_does():
    before, golden = run().values("pretrain/step0"), run().values(last_checkpoint())
    ours = pretrained("official", unbroken=True)[-1].values
    assert_near(
        update_errors(ours, golden, before),
        UPDATES,
        lambda seed: update_errors(
            pretrained("official", seed, unbroken=True)[-1].values, ours, before
        ),
    )


def test_evaluation_after_pretraining_is_the_official_one():
    result = run().described["eval_result"]
    simclr, linear = run().network(last_checkpoint())
    images_BHWC = torch.from_numpy(run().arrays["eval_images"]).float() / 256
    with torch.no_grad():
        logits_BK = linear(simclr.eval().encoder(images_BHWC.permute(0, 3, 1, 2)))
    labels_B = torch.from_numpy(run().arrays["eval_labels"]).long()
    for top in (1, 5):
        stored = result[f"eval/label_top_{top}_accuracy"]
        assert_same_accuracy(logits_BK, labels_B, stored, top)
    decay = torch.as_tensor(supervised_head_decay(linear, run().flags["weight_decay"]))
    assert decay.item() == pytest.approx(result["eval/regularization_loss"], rel=1e-6)


def test_exported_model_has_the_official_outputs():
    simclr, linear = run().network(last_checkpoint())
    images_BHWC = torch.from_numpy(run().arrays["saved_model_input"])
    with torch.no_grad():
        outputs = simclr.eval().encoder.features(images_BHWC.permute(0, 3, 1, 2))
        outputs["z"] = simclr.head(outputs["h"])
        outputs["logits"] = linear(outputs["h"])
    golden = run().values("saved_model_out")
    errors = {}
    for name, stored in golden.items():
        ours = outputs[OUTPUTS[name.removesuffix("_first2")]]
        ours = ours.movedim(1, -1)[: len(stored)]
        assert ours.shape == stored.shape
        errors[name] = ((ours - stored).abs().max() / stored.abs().max()).item()
    assert {"final_avg_pool", "proj_head_output", "logits_sup"} <= set(golden)
    assert_all_within(errors, SAVED_OUTPUTS)


def finetuning_losses(tag: str, steps: list[Stepped]) -> dict[str, float]:
    """As `pretraining_losses`; the decay is in our loss with LARS alone, as it is needed there."""
    by_lars = finetuning_flags(tag)["optimizer"] == "lars"
    numbers = {}
    for number, stepped in enumerate(steps, start=1):
        loss, decay = stepped.seen["supervised_loss"], stepped.seen["weight_decay"]
        logged = {"supervised_loss": loss}
        if by_lars:
            logged |= {"weight_decay": decay, "total_loss": loss + decay}
        numbers |= {f"{number} train/{name}": value.item() for name, value in logged.items()}
    return numbers


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("tag", TAGS)
def test_finetuning_losses_of_every_step_are_the_official_ones(tag: str, sums: Sums):
    logged = finetunings()[tag]["metrics_per_step"]
    assert len(logged) == len(finetuned(tag, sums))
    ours = finetuning_losses(tag, finetuned(tag, sums))
    assert_near(
        relative_errors(ours, {name: logged_under(name, logged) for name in ours}),
        LOSSES,
        lambda seed: relative_errors(
            finetuning_losses(tag, finetuned(tag, "official", seed)), ours
        ),
    )


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("tag", TAGS)
def test_finetuning_starts_with_the_official_accuracy(tag: str, sums: Sums):
    seen = finetuned(tag, sums)[0].seen
    stored = finetunings()[tag]["metrics_per_step"][0]["train/supervised_acc"]
    assert_same_accuracy(seen["logits"], seen["labels"], stored)


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("tag", TAGS)
def test_finetuning_moves_weights_and_statistics_as_officially(tag: str, sums: Sums):
    before, stepped = run().values(last_checkpoint()), finetuned(tag, sums)
    golden = run().values(f"{tag}/step{len(stepped)}")
    unchanged = set(finetunings()[tag]["unchanged_variables"])
    assert set(golden) | unchanged == set(before)
    assert len(golden) == finetunings()[tag]["changed_variables"]
    ours = {name: stepped[-1].values[name] for name in golden}
    assert_near(
        update_errors(ours, golden, before),
        UPDATES,
        lambda seed: update_errors(finetuned(tag, "official", seed)[-1].values, ours, before),
    )
    for name in unchanged:
        torch.testing.assert_close(stepped[-1].values[name], before[name], rtol=0, atol=0)


@pytest.mark.parametrize("sums", SUMS)
@pytest.mark.parametrize("tag", TAGS)
def test_finetuning_moves_the_supervised_head_as_officially_at_every_step(tag: str, sums: Sums):
    (kernel,) = [v.path for v in run().variables if v.ours == "linear.weight"]
    before, compared = run().values(last_checkpoint()), 0
    for index, stepped in enumerate(finetuned(tag, sums)):
        stored = run().values(f"{tag}/step{index + 1}").get("supervised_head_kernel")
        if stored is None:
            continue
        ours = {kernel: stepped.values[kernel]}
        assert_near(
            update_errors(ours, {kernel: stored}, before),
            UPDATES,
            lambda seed, index=index, ours=ours: update_errors(
                finetuned(tag, "official", seed)[index].values, ours, before
            ),
        )
        compared += 1
    assert compared


def tags_that_differ_in_decay_alone() -> list[tuple[str, str]]:
    def but_for_decay(tag: str) -> dict[str, Any]:
        return finetuning_flags(tag) | {"weight_decay": None}

    return [
        (one, other)
        for one, other in combinations(TAGS, 2)
        if but_for_decay(one) == but_for_decay(other)
        and finetuning_flags(one)["optimizer"] == "lars"
    ]


@pytest.mark.parametrize(("one", "other"), tags_that_differ_in_decay_alone())
def test_weight_decay_changes_the_supervised_head_as_officially(one: str, other: str):
    """After a step of two fine-tunings from the same weights: all else cancels, rounding too."""
    (kernel,) = [v.path for v in run().variables if v.ours == "linear.weight"]
    golden = [run().values(f"{tag}/step1")["supervised_head_kernel"] for tag in (one, other)]
    ours = [finetuned(tag, "ours")[0].values[kernel] for tag in (one, other)]
    pulled = golden[1] - golden[0]
    assert pulled.norm() > 0
    assert (ours[1] - ours[0] - pulled).norm() <= DECAY * pulled.norm()
