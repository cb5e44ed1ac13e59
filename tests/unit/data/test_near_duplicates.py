import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stages.data.looks import SIDE, look_of
from stages.data.near_duplicates import (
    LEAST_CORRELATION,
    find_near_copies,
    joined,
    near_pairs,
)
from stages.data.sources import Split

RNG = np.random.default_rng(0)


def picture(seed: int) -> Image.Image:
    """Something smooth with detail, 200 x 150, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
    return Image.blend(
        *(image.resize((200, 150), Image.Resampling.BICUBIC) for image in (coarse, fine)), 0.2
    )


def look(image: Image.Image, channels: int = 3) -> bytes:
    mode = "RGB" if channels == 3 else "L"
    pixels = np.asarray(image.convert(mode))
    return look_of(pixels if channels == 3 else pixels[:, :, None])


def rows(looks: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(looks), np.uint8).reshape(-1, SIDE**2)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


EDITS = {
    "JPEG, quality 50": lambda image: jpeg(image, 50),
    "JPEG, quality 90": lambda image: jpeg(image, 90),
    "halved": lambda image: image.resize((100, 75), Image.Resampling.BICUBIC),
    "enlarged": lambda image: image.resize((500, 375), Image.Resampling.LANCZOS),
    "another shape": lambda image: image.resize((150, 150), Image.Resampling.BICUBIC),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "brighter": lambda image: image.point([int(20 + level * 0.8) for level in range(256)] * 3),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_of_a_picture_are_found_and_other_pictures_are_not(edit: str):
    originals = [picture(seed) for seed in range(40)]
    looks = [look(image) for image in originals]
    looks += [look(EDITS[edit](image)) for image in originals]
    assert sorted(map(tuple, near_pairs(rows(looks)).tolist())) == [(n, 40 + n) for n in range(40)]


def test_a_cut_out_is_beyond_what_is_looked_for():
    image = picture(0)
    cut = image.crop((10, 8, 190, 142))
    assert len(near_pairs(rows([look(image), look(cut)]))) == 0


def test_channels_do_not_matter():
    image = picture(1).convert("L").convert("RGB")
    assert look(image, 1) == look(image, 3)


def test_pairs_are_those_of_every_look_compared_with_every_other():
    """Planted at all correlations from 0.99 to 1, among looks that are alike to begin with."""
    base = RNG.normal(size=(1, SIDE**2)) * 60
    own = RNG.normal(size=(500, SIDE**2)) * 12
    first = base + own
    noise = RNG.normal(size=first.shape) * RNG.uniform(0, 9, (500, 1))
    looks = np.clip(np.rint(np.concatenate([first, first + noise]) + 128), 0, 255).astype(np.uint8)
    correlation = np.corrcoef(looks.astype(float))
    above = np.triu(correlation >= LEAST_CORRELATION, 1)
    expected = set(map(tuple, np.argwhere(above).tolist()))
    assert 100 < len(expected) < 500
    assert 0.95 < np.median(correlation) < LEAST_CORRELATION
    assert {tuple(sorted(pair)) for pair in near_pairs(looks).tolist()} == expected


def test_pictures_of_one_colour_are_no_copies_of_each_other():
    flat = [bytes([level]) * SIDE**2 for level in (0, 0, 200)]
    faint = bytes(RNG.integers(100, 103, SIDE**2, dtype=np.uint8))
    assert len(near_pairs(rows([*flat, faint, faint]))) == 0
    assert near_pairs(np.empty((0, SIDE**2), np.uint8)).shape == (0, 2)


def test_a_crowd_of_one_look_is_one_group_and_not_every_pair():
    looks = np.repeat(rows([look(picture(2))]), 3000, axis=0)
    pairs = near_pairs(looks)
    assert len(pairs) < 10 * 3000
    assert set(joined(pairs, 3000)) == {0}


def test_groups_join_by_chains():
    pairs = np.array([[4, 5], [0, 3], [3, 5], [1, 2]])
    assert joined(pairs, 7) == [0, 1, 1, 0, 0, 0, 6]


SPLIT_OF: dict[str, Split] = {
    "a": "train",
    "b": "test",
    "c": "validation",
    "d": "train",
    "e": "train",
    "f": "train",
    "g": "test",
}


def groups(*, drop: bool) -> list[dict[str, object]]:
    """a, b and c are edits of a picture, d and e exact copies, f and g pictures of their own."""
    one, two = picture(3), picture(4)
    images = {"a": one, "b": jpeg(one, 80), "c": jpeg(one, 60), "d": two, "e": two}
    images |= {"f": picture(5), "g": picture(6)}
    looks = {key: look(image) for key, image in images.items()}
    contents = {key: image.tobytes() for key, image in images.items()}
    classes = dict.fromkeys(images, "cat") | {"b": "dog", "c": None}
    return [
        group.as_record()
        for group in find_near_copies(looks, contents, SPLIT_OF, classes, drop=drop)
    ]


def test_a_group_tells_its_sides_and_labels_that_contradict_each_other():
    told = {
        "keys": ["a", "b", "c"],
        "sides": ["train", "validation", "test"],
        "class_names": ["cat", "dog"],
    }
    assert groups(drop=False) == [told]
    assert groups(drop=True) == [told | {"dropped": ["a", "c"]}]
