"""Which way of taking a batch through the network is chosen, and what is said where none fits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from stages.data.views import ViewRecipe
from stages.errors import UserError
from stages.params import Params, check_params
from stages.training import pretraining
from stages.training.batches import Batch, ViewLoader
from stages.training.fitting import Fit, first_that_fits, ways
from stages.training.recipes import architecture_of
from stages.training.runtime import Runtime
from tests.unit.training.in_memory import InMemory

ROOT = Path(__file__).parents[3]


def params_with(batch_norm_images: int | None, micro_batch: Any, recompute: str = "none") -> Params:
    written = yaml.safe_load((ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    written["pretrain"] |= {"batch_size": 48, "batch_norm_images": batch_norm_images}
    written["runtime"] |= {"micro_batch": micro_batch, "recompute": recompute}
    return check_params(written)


def test_over_the_whole_batch_only_more_recomputing_is_tried():
    assert ways(48, None, "none") == [Fit(48, "none"), Fit(48, "groups"), Fit(48, "blocks")]
    assert ways(48, None, "blocks") == [Fit(48, "blocks")]


def test_over_parts_every_multiple_that_divides_the_batch_is_tried_largest_first():
    assert [fit.images for fit in ways(48, 8, "none")] == [48, 24, 16, 8]


def test_the_first_that_fits_is_taken_and_none_says_what_helps():
    found = ways(48, 8, "none")
    assert first_that_fits(found, lambda fit: fit.images <= 20) == Fit(16, "none")
    with pytest.raises(UserError, match=r"not even 8 images at once.*\n.*batch_norm_images"):
        first_that_fits(found, lambda _: False)


@pytest.mark.parametrize(
    ("batch_norm_images", "micro_batch", "said"),
    [
        (None, 16, r"splits a batch of 48 images that batch norm takes as one"),
        (7, None, r"batch_norm_images \(7\) must divide the 48 images"),
        (8, 20, r"micro_batch \(20\) must divide the 48 images"),
        (16, 24, r"a multiple of pretrain.batch_norm_images \(16\)"),
        (8, "all", r"runtime.micro_batch"),
    ],
)
def test_a_split_that_cannot_be_is_told_of(batch_norm_images: Any, micro_batch: Any, said: str):
    with pytest.raises(UserError, match=said):
        params_with(batch_norm_images, micro_batch)


@pytest.mark.parametrize(
    ("batch_norm_images", "micro_batch"), [(None, None), (8, 16), (8, "auto"), (None, 48)]
)
def test_a_split_that_can_be_is_taken(batch_norm_images: Any, micro_batch: Any):
    assert params_with(batch_norm_images, micro_batch).runtime.micro_batch == micro_batch


def test_on_a_cpu_auto_takes_all_at_once_and_draws_nothing_to_try_it():
    params, runtime = params_with(8, "auto"), Runtime(torch.device("cpu"))
    data: Any = InMemory(torch.zeros(48, 1, 28, 28, dtype=torch.uint8), 48, np.arange(48))
    loader = ViewLoader(data, ViewRecipe.official(28), 48, n_views=2, seed=0)
    architecture = architecture_of(params)
    state = pretraining.build_state(params.pretrain, architecture, 48, runtime)
    before = torch.get_rng_state()
    passes = pretraining.passes_of(params, state, loader, runtime, None)
    assert passes.sizes(48) == [48]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_too_small_for_the_batch_is_told_of_with_what_helps(
    monkeypatch: pytest.MonkeyPatch,
):
    def too_large(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(pretraining, "contrastive_step", lambda *_, **__: too_large)
    step = pretraining.step_of(params_with(None, None).pretrain, Runtime(torch.device("cpu")))
    with pytest.raises(UserError, match=r"out of memory\).\n.*batch_norm_images"):
        step(None, Batch(torch.zeros(2, 1, 1, 8, 8), torch.arange(1).numpy()))  # type: ignore[arg-type]
