"""LARS, the official momentum optimizer and the schedule, step by step."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.optim.lars import LARS
from stages.optim.schedules import (
    official_total_steps,
    official_warmup_steps,
    scaled_lr,
    warmup_cosine,
)

pytestmark = pytest.mark.golden

RTOL = 1e-6
ROUNDING = 3e-7  # float32 of a sum whose terms are as large as the variable's largest value
SCHEDULE_ROUNDING = 2e-7  # of 1 + cos near its end, as a share of the peak


def read(golden_dir: Path) -> tuple[dict, dict[str, np.ndarray]]:
    settings = json.loads((golden_dir / "lars.json").read_text())
    with np.load(golden_dir / "lars.npz") as arrays:
        return settings, {name: arrays[name] for name in arrays.files}


def is_in(name: str, patterns: list[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def weights_of(arrays: dict[str, np.ndarray], n: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(arrays[f"var{i}_init"])) for i in range(n)]


def take_step(optimizer: LARS, weights: list, arrays: dict[str, np.ndarray], step: int, lr: float):
    for i, weight in enumerate(weights):
        weight.grad = torch.tensor(arrays[f"var{i}_grads"][step])
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def assert_equal(actual: torch.Tensor, expected: np.ndarray, what: str):
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(
        actual.detach().numpy(), expected, rtol=RTOL, atol=ROUNDING * largest, err_msg=what
    )


def test_lars_is_the_official_one_in_every_variant_at_every_step(golden_dir):
    settings, arrays = read(golden_dir)
    names = [variable["name"] for variable in settings["variables"]]
    assert settings["variants"]
    for variant in settings["variants"]:
        weights = weights_of(arrays, len(names))
        no_decay = variant["exclude_from_weight_decay"]
        no_adaptation = variant["exclude_from_layer_adaptation"]
        groups = [
            {
                "params": [weight],
                "weight_decay": 0.0 if is_in(name, no_decay) else variant["weight_decay"],
                "adapt": not is_in(name, no_adaptation),
            }
            for weight, name in zip(weights, names, strict=True)
        ]
        optimizer = LARS(
            groups,
            0.0,
            momentum=variant["momentum"],
            trust_coefficient=variant["eeta"],
            nesterov=variant["use_nesterov"],
            classic_momentum=variant["classic_momentum"],
        )
        for step, lr in enumerate(arrays["lr"]):
            take_step(optimizer, weights, arrays, step, float(lr))
            for i, weight in enumerate(weights):
                what = f"variant {variant['variant']}, step {step}, {names[i]}"
                stored = f"variant{variant['variant']}_var{i}"
                assert_equal(weight, arrays[f"{stored}_values"][step], what)
                buffer = optimizer.state[weight]["momentum_buffer"]
                assert_equal(buffer, arrays[f"{stored}_momentum"][step], what)


def test_unadapted_nesterov_lars_is_the_official_momentum_optimizer(golden_dir):
    settings, arrays = read(golden_dir)
    official = settings["sgd_nesterov"]
    weights = weights_of(arrays, len(settings["variables"]))
    groups = [{"params": weights, "adapt": False, "weight_decay": official["weight_decay"]}]
    optimizer = LARS(groups, 0.0, momentum=official["momentum"], nesterov=official["nesterov"])
    for step, lr in enumerate(arrays["sgd_nesterov_lr"]):
        take_step(optimizer, weights, arrays, step, float(lr))
        for i, weight in enumerate(weights):
            assert_equal(weight, arrays[f"sgd_nesterov_var{i}_values"][step], f"step {step}, {i}")


def test_schedule_is_the_official_one_at_every_stored_step(golden_dir):
    settings = json.loads((golden_dir / "lr_schedule.json").read_text())
    assert settings
    for setting in settings:
        batch_size, n_images = setting["batch_size"], setting["num_examples"]
        peak = scaled_lr(setting["base_lr"], batch_size, setting["scaling"])
        assert peak == pytest.approx(setting["scaled_peak_lr"], rel=1e-9)
        warmup = official_warmup_steps(n_images, setting["warmup_epochs"], batch_size)
        assert warmup == setting["warmup_steps"]
        total = setting["train_steps_flag"] or official_total_steps(
            n_images, setting["epochs"], batch_size
        )
        assert total == setting["total_steps"]
        lrs = [warmup_cosine(step, peak, warmup, total) for step in setting["steps"]]
        np.testing.assert_allclose(lrs, setting["lr"], rtol=RTOL, atol=SCHEDULE_ROUNDING * peak)
