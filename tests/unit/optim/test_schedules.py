import pytest

from stages.optim.schedules import (
    official_total_steps,
    official_warmup_steps,
    scaled_lr,
    warmup_cosine,
)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (1, 0.5),
        (3, 1.5),
        (4, 2.0),  # the peak
        (6, 1.7071067811865475),  # a quarter of the cosine
        (8, 1.0),  # half
        (10, 0.2928932188134524),
        (12, 0.0),
        (13, 0.0),  # past the end
    ],
)
def test_warmup_cosine_step_by_step(step, lr):
    assert warmup_cosine(step, 2.0, 4, 12) == pytest.approx(lr, abs=1e-15)


def test_without_a_warmup_the_first_step_has_the_peak():
    assert warmup_cosine(0, 0.3, 0, 10) == 0.3


def test_a_warmup_as_long_as_the_run_ends_at_the_peak():
    assert [warmup_cosine(step, 1.0, 2, 2) for step in range(4)] == [0.0, 0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("base_lr", "batch_size", "scaling", "peak"),
    [
        (0.3, 4096, "linear", 4.8),  # SimCLR, section 2.2
        (0.075, 4096, "sqrt", 4.8),  # SimCLR, B.1
        (0.1, 4096, "sqrt", 6.4),  # SimCLRv2
        (0.05, 64, "none", 0.05),
    ],
)
def test_peak_lr_of_the_papers(base_lr, batch_size, scaling, peak):
    assert scaled_lr(base_lr, batch_size, scaling) == pytest.approx(peak)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="cubic"):
        scaled_lr(0.1, 256, "cubic")


def test_official_durations_on_imagenet():
    assert official_total_steps(1_281_167, 100, 4096) == 31_279
    assert official_total_steps(1_281_167, 800, 4096) == 250_228  # the released checkpoint's
    assert official_warmup_steps(1_281_167, 10, 4096) == 3_127
    assert official_warmup_steps(1_281_167, 40, 4096) == 12_511
    assert official_warmup_steps(50_000, 2.5, 512) == 244
