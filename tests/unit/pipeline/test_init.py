"""`python -m pipeline init`: params that fit a folder, and the reasons."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline import profiles
from pipeline.cli import main
from pipeline.fit import Fit, batch_for, budget_of, cost_of, fit
from pipeline.init import fitted
from stages.errors import UserError
from stages.params import Params, check_params
from stages.sections.kinds import duration_in_steps


def found(**differing: Any) -> dict[str, Any]:
    """What stages.look tells of 2,000 colour pictures in four classes, differing as said."""
    told = {
        "data": {"source": "folder", "root": "photos", "unlabelled": []},
        "images": 2000,
        "class_names": ["a", "b", "c", "d"],
        "unlabelled": 1000,
        "per_class": {"not said": [400, 300, 200, 100]},
        "splits": {"not said": 2000},
        "refused": 0,
        "decoded": 400,
        "damaged": [],
        "colourful": 400,
        "shorter_side": [200, 240, 260, 300, 500],
        "aspect": 1.3,
        "bytes_each": 50_000,
    }
    return told | differing


DURATIONS = {"quick": "22 epochs", "gpu": "200 epochs"}  # whatever the profiles are tuned to


def decided(profile: str = "quick", **differing: Any) -> tuple[Params, Fit]:
    text = profiles.text_of(profile)
    values = yaml.safe_load(text)
    values["pretrain"]["duration"] = DURATIONS[profile]
    made = fit(found(**differing), values, "a reason")
    return check_params(yaml.safe_load(fitted(text, made, "photos"))), made


def test_every_comment_and_every_other_line_of_the_profile_stays():
    _, made = decided()
    for profile in ("quick", "gpu"):
        before = profiles.text_of(profile)
        after = fitted(before, Fit({"data.image_size": 96}, []), "photos")
        lines = [
            pair
            for pair in zip(before.splitlines(), after.splitlines(), strict=True)
            if len(set(pair)) > 1
        ]
        assert [new for _, new in lines] == [
            f"profile: {profile} # fitted to photos by python -m pipeline init",
            "  image_size: 96 # pixels, height and width that the networks see",
        ]
        many = fitted(before, made, "photos")
        values = yaml.safe_load(many)
        for key, value in made.values.items():
            where = values
            for name in key.split("."):
                where = where[name]
            assert where == value, key


@pytest.mark.parametrize(
    ("profile", "sides", "images", "size"),
    [
        ("quick", 300, 2_000, 96),
        ("quick", 300, 10_000, 48),
        ("quick", 300, 50_000, 28),
        ("quick", 50, 2_000, 48),
        ("quick", 26, 2_000, 24),
        ("quick", 8, 2_000, 16),
        ("gpu", 300, 2_000, 224),
        ("gpu", 300, 50_000, 192),
        ("gpu", 32, 50_000, 32),
    ],
)
def test_size_is_the_largest_that_images_and_time_allow(
    profile: str, sides: int, images: int, size: int
):
    params, made = decided(
        profile, shorter_side=[sides] * 5, images=images, unlabelled=images - 1000
    )
    assert params.data.image_size == size
    assert any(reason.startswith(f"image_size {size}: ") for reason in made.reasons)


@pytest.mark.parametrize("profile", ["quick", "gpu"])
@pytest.mark.parametrize("images", [300, 3_000, 30_000, 60_000])
@pytest.mark.parametrize("sides", [28, 64, 400])
def test_pretraining_computes_no_more_than_the_profile_does(profile: str, images: int, sides: int):
    values = yaml.safe_load(profiles.text_of(profile))
    values["pretrain"]["duration"] = DURATIONS[profile]
    params, _ = decided(
        profile,
        images=images,
        unlabelled=images - 200,
        per_class={"not said": [50] * 4},
        shorter_side=[sides] * 5,
    )
    n_train = images - int(200 * params.data.test_fraction) - params.data.validation_images
    epochs = float(params.pretrain.duration.split()[0])
    seen = epochs * n_train * cost_of(params.data.image_size, profile)
    assert seen <= 1.02 * budget_of(values)  # epochs are written with two digits
    assert params.pretrain.batch_size <= n_train / 2
    assert duration_in_steps(params.pretrain.duration, n_train, params.pretrain.batch_size) >= 100


def test_batch_is_never_above_half_of_the_images():
    profile = {"pretrain": {"batch_size": 256}}
    sizes = {n: batch_for(profile, n) for n in (4, 5, 300, 511, 512, 10**6)}
    assert sizes == {4: 2, 5: 2, 300: 128, 511: 128, 512: 256, 10**6: 256}


@pytest.mark.parametrize(
    ("per_class", "fractions"),
    [
        ([6000] * 10, ["10_per_class", 0.01, 0.1]),
        ([115, 185], ["10_per_class", 1.0]),
        ([10, 10], ["2_per_class", 1.0]),
        ([3, 3], ["1_per_class"]),
        ([500, 4], ["1_per_class", 0.1, 1.0]),
    ],
)
def test_every_class_can_fill_every_label_fraction(per_class: list[int], fractions: list[object]):
    names = [f"class {number}" for number in range(len(per_class))]
    _, made = decided(
        per_class={"not said": per_class}, class_names=names, images=sum(per_class), unlabelled=0
    )
    assert made.values["finetune.label_fractions"] == fractions


@pytest.mark.parametrize("profile", ["quick", "gpu"])
@pytest.mark.parametrize("per_class", [[1500, 700], [5000] * 10, [20] * 3])
def test_nets_pass_over_many_labels_as_often_as_those_of_the_profiles(
    profile: str, per_class: list[int]
):
    names = [f"class {number}" for number in range(len(per_class))]
    params, made = decided(
        profile,
        per_class={"not said": per_class},
        class_names=names,
        images=sum(per_class),
        unlabelled=0,
    )
    n_train = sum(per_class) - int(sum(per_class) * params.data.test_fraction)
    n_train -= params.data.validation_images
    ours, theirs = params.finetune, params.supervised
    for fraction in ours.label_fractions:
        each, _, per = fraction.partition("_")
        labels = int(each) * len(per_class) if per else int(float(each) * n_train)
        durations = [ours.duration, theirs.duration_grid[-1]]
        if fraction in ours.overrides:
            durations[0] = ours.overrides[fraction].duration or ""
        if fraction in theirs.overrides:
            durations[1] = (theirs.overrides[fraction].duration_grid or [""])[-1]
        for duration, batch, passes in zip(
            durations, (ours.batch_size, theirs.batch_size), (16, 24), strict=True
        ):
            batch_size = min(batch, labels)
            steps = duration_in_steps(duration, labels, batch_size)
            assert (steps + passes) * batch_size >= passes * labels  # an epoch is of whole batches
    told = [reason for reason in made.reasons if "fewer passes over the labels" in reason]
    assert len(told) == bool(ours.overrides or theirs.overrides)


def test_splits_of_the_source_are_kept():
    params, made = decided(per_class={"train": [50] * 4, "test": [9] * 4, "validation": [5] * 4})
    assert params.data.test_fraction == 0.15
    assert "test: the source's own 36 images" in made.reasons
    assert "validation: the source's own 20 images" in made.reasons


@pytest.mark.parametrize(
    ("per_class", "message"),
    [
        ({"not said": [9, 2, 9, 9]}, "b has 2.\n  Each class needs 3 labelled images"),
        ({"train": [9, 2, 9, 0], "test": [5] * 4}, "d has 0.\n  Each class needs 2 labelled"),
    ],
)
def test_a_class_with_too_few_labels_is_named(per_class: dict[str, list[int]], message: str):
    with pytest.raises(UserError, match=message):
        decided(per_class=per_class)


def test_grey_pictures_get_no_colour_jitter_and_colour_ones_do():
    grey, _ = decided(colourful=4)
    colour, _ = decided(colourful=5)
    assert (grey.data.channels, grey.pretrain.views.hue) == (1, 0.0)
    assert (colour.data.channels, colour.pretrain.views.hue) == (3, 0.2)
    assert colour.pretrain.views.grayscale_probability == 0.2


@pytest.mark.parametrize("profile", ["quick", "gpu"])
def test_large_pictures_are_resized_with_every_pixel_counting(profile: str):
    few, made = decided(profile, shorter_side=[224] * 5)
    assert few.data.image_size * 4 >= 224
    large, made = decided(profile, shorter_side=[3000] * 5)
    for params, kernel in ((few, None), (large, "bicubic_antialias")):
        views = [params.pretrain.views, params.finetune.views, params.distill.views]
        views += [params.semisup.weak_views, params.semisup.strong_views]
        found = {view.resize for view in [*views, *params.supervised.views_grid]}
        assert found | {params.evaluation.resize} == {kernel}
    assert any(
        reason.startswith("resize bicubic_antialias: 3000 pixels") for reason in made.reasons
    )
    profile_grid = yaml.safe_load(profiles.text_of(profile))["supervised"]["views_grid"]
    assert [view.crop_area for view in large.supervised.views_grid] == [
        tuple(views["crop_area"]) for views in profile_grid
    ]


def test_few_images_on_a_gpu_have_no_queue_that_outlives_an_epoch():
    few, _ = decided("gpu")
    many, _ = decided("gpu", images=30_000, unlabelled=29_000)
    assert few.pretrain.memory.kind == "none"
    assert (many.pretrain.memory.kind, many.pretrain.memory.size) == ("simclr", 4096)


def test_damage_and_long_pictures_are_told():
    _, made = decided(damaged=[["a/1", "empty"]], aspect=2.5)
    assert any("1 of 400 images looked at do not decode, the first a/1" in r for r in made.reasons)
    assert any("2.5 times as long as wide" in reason for reason in made.reasons)
    with pytest.raises(UserError, match=r"none of the 400 .* decodes; the first: a/1 \(empty\)"):
        decided(damaged=[["a/1", "empty"]], shorter_side=[])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with 60 small pictures of which 40 have a label."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(60):
        pixels = rng.integers(0, 256, (40, 44), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number:02d}.png")
    lines = "".join(f"{number:02d},{'cat' if number % 2 else 'dog'}\n" for number in range(40))
    (tmp_path / "photos/labels.csv").write_text(lines)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def test_init_writes_params_that_check_accepts(project: Path, capsys: pytest.CaptureFixture[str]):
    assert run("init", "photos", "--profile", "quick") == 0
    out = capsys.readouterr().out
    assert "source labels_csv: a list of labels (photos/labels.csv); 60 images, 40 of them" in out
    assert "image_size 32: shorter sides are 40 to 40 pixels" in out
    assert "channels 1: 0 of 60 images looked at have colour" in out
    assert run("check") == 0
    data = yaml.safe_load((project / "params.yaml").read_text())["data"]
    assert (data["root"], data["labels_csv"]) == ("photos", "photos/labels.csv")


def test_init_keeps_values_that_are_kept_nowhere_else(project: Path):
    mine = profiles.text_of("quick").replace("temperature: 0.2", "temperature: 0.15")
    Path("params.yaml").write_text(mine)
    with pytest.raises(UserError, match="--force"):
        main(["init", "photos"])
    assert Path("params.yaml").read_text() == mine
    assert run("init", "photos", "--force") == 0
    assert Path("params.yaml.bak").read_text() == mine


def test_dry_run_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]):
    assert run("init", "photos", "--dry-run") == 0
    assert "nothing written" in capsys.readouterr().out
    assert not Path("params.yaml").exists()


def test_a_folder_of_nothing_ends_with_the_stages_own_message(project: Path):
    (project / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image that can be used"):
        main(["init", "empty"])
    assert not Path("params.yaml").exists()
