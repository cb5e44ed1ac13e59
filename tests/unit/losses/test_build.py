"""A loss by its name, and NT-Xent by its size."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.losses import build
from stages.losses.build import build_loss, nt_xent_by_size
from stages.losses.margin_triplet import margin_triplet
from stages.losses.nt_logistic import nt_logistic
from stages.losses.nt_xent import nt_xent
from stages.losses.streaming_nt_xent import streaming_nt_xent

EVERY_LOSS = [
    build_loss("nt_xent", 0.2),
    *(build_loss("nt_logistic", 0.2, semi_hard=semi_hard) for semi_hard in (False, True)),
    *(build_loss("margin_triplet", 0.2, 0.6, semi_hard) for semi_hard in (False, True)),
]


@pytest.mark.parametrize("semi_hard", [False, True])
def test_a_loss_has_the_settings_of_the_params(draw_views, semi_hard: bool):
    views = draw_views(6, 3)
    for built, plain in (
        (build_loss("nt_logistic", 0.3, 0.4, semi_hard), partial(nt_logistic, temperature=0.3)),
        (build_loss("margin_triplet", 0.3, 0.4, semi_hard), partial(margin_triplet, margin=0.4)),
    ):
        expected = plain(*views, semi_hard=semi_hard)
        torch.testing.assert_close(built(*views, rows=slice(None)), expected, rtol=0, atol=0)
    expected = nt_xent(*views, 0.3)
    built = build_loss("nt_xent", 0.3)(*views, rows=slice(None))
    torch.testing.assert_close(built, expected, rtol=0, atol=0)


def test_an_unknown_loss_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'barlow'; choose nt_xent, nt_logistic or margin_triplet"):
        build_loss("barlow", 0.2)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("loss_function", EVERY_LOSS)
def test_the_mean_over_shares_is_the_loss_of_the_whole(draw_views, loss_function):
    z0_BP, z1_BP = draw_views(12, 4)
    whole = loss_function(z0_BP, z1_BP, rows=slice(None))
    shares = [loss_function(z0_BP, z1_BP, rows=slice(s, s + 4)) for s in (0, 4, 8)]
    mean = torch.stack(shares).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)
    for expected, actual in zip(
        *(torch.autograd.grad(loss, (z0_BP, z1_BP)) for loss in (whole, mean)), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def called(monkeypatch: pytest.MonkeyPatch, *views: Tensor, **more: Tensor | slice) -> str:
    """Which of the two forms computes a loss."""
    names = []

    def spy(loss_function):
        def spied(*arguments, **options):
            names.append(loss_function.__name__)
            return loss_function(*arguments, **options)

        return spied

    for form in (nt_xent, streaming_nt_xent):
        monkeypatch.setattr(build, form.__name__, spy(form))
    nt_xent_by_size(*views, 0.1, **more)
    return names[-1]


def test_many_logits_stream_and_few_do_not(draw_views, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "STREAMS_FROM", 64 * 64)
    monkeypatch.setattr(build, "STREAMS_FROM_WITHOUT_SYMMETRY", 64 * 80)
    few, many = draw_views(31, 4), draw_views(32, 4)
    assert called(monkeypatch, *few) == "nt_xent"
    assert called(monkeypatch, *many) == "streaming_nt_xent"
    assert called(monkeypatch, *many, rows=slice(0, 31)) == "nt_xent"  # no symmetry in a share
    for length, form in ((15, "nt_xent"), (16, "streaming_nt_xent")):
        queue_QP = F.normalize(draw_views(length, 4)[0].detach(), dim=1)
        assert called(monkeypatch, *many, queue_QP=queue_QP) == form


def test_the_sizes_that_profiles_train_with():
    """Quick's batch stays on the plain form; the papers' 4096 images don't fit a matrix."""
    assert (2 * 256) ** 2 < build.STREAMS_FROM < (2 * 4096) ** 2
    one_of_8_processes = 2 * 4096 // 8 * (2 * 2 * 4096 + 65536)
    assert one_of_8_processes > build.STREAMS_FROM_WITHOUT_SYMMETRY
