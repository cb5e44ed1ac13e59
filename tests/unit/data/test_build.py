import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.data.build import Wanted, build_shards
from stages.data.folders import read_class_folders
from stages.data.images import encode_png
from stages.data.index import read_index, read_members
from stages.data.splits import SplitSizes
from stages.errors import UserError

WANTED = Wanted(
    sizes=SplitSizes(validation_images=8, test_fraction=0.2),
    seed=0,
    channels=1,
    max_pixels=10_000,
    images_per_shard=10,
    quarantine_tolerance=0.2,
)


def draw(root: Path, per_class: int = 20) -> Path:
    """Noise in two classes and some without a label."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "unlabelled"):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 256, (8, 9), dtype=np.uint8)
            (root / name / f"{number:02d}.png").write_bytes(encode_png(pixels))
    return root


def build(root: Path, folder: Path, wanted: Wanted = WANTED) -> dict:
    return build_shards(
        read_class_folders(root), wanted, folder, folder.with_name("work"), workers=1
    )


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_folder_becomes_shards_tables_and_an_index(tmp_path: Path):
    content = build(draw(tmp_path / "images"), tmp_path / "shards")
    splits = content["splits"]
    assert sorted(content_of(tmp_path / "shards")) == sorted(
        [
            "index.json",
            "quarantine.csv",
            *(split["members"]["name"] for split in splits.values()),
            *(shard["name"] for split in splits.values() for shard in split["shards"]),
        ]
    )
    assert all(shard["images"] <= 10 for shard in splits["train"]["shards"])
    assert {name: split["images"] for name, split in splits.items()} == {
        "train": 44,
        "validation": 8,
        "test": 8,
    }
    assert splits["train"]["per_class"] == [12, 12]
    assert splits["train"]["labelled"] == 24
    assert splits["test"]["height"] == [8, 8]
    assert splits["test"]["width"] == [9, 9]
    assert content["statistics"]["mean"] == pytest.approx([0.5], abs=0.02)  # of noise, 0..255
    assert content["statistics"]["std"] == pytest.approx([0.289], abs=0.01)
    assert not (tmp_path / "work").exists()


def test_every_row_of_the_table_points_at_its_image(tmp_path: Path):
    root = draw(tmp_path / "images")
    build(root, tmp_path / "shards")
    index = read_index(tmp_path / "shards")
    for split in ("train", "validation", "test"):
        table = read_members(index, split)
        shards = [(tmp_path / "shards" / s.name).read_bytes() for s in index.split(split).shards]
        for row, key in enumerate(table.keys):
            start, size = table.offset[row], table.n_bytes[row]
            assert (
                shards[table.shard[row]][start : start + size] == (root / f"{key}.png").read_bytes()
            )
            name = key.split("/")[0]
            number = -1 if name == "unlabelled" else index.class_names.index(name)
            assert table.class_number[row] == number


def test_the_same_images_and_params_give_the_same_bytes(tmp_path: Path):
    root = draw(tmp_path / "images")
    build(root, tmp_path / "one/shards")
    build(root, tmp_path / "other/shards")
    assert content_of(tmp_path / "one/shards") == content_of(tmp_path / "other/shards")
    other = build(root, tmp_path / "third/shards", replace(WANTED, seed=1))
    assert other["fingerprint"] != read_index(tmp_path / "one/shards").fingerprint


def stop_at(patch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Raise in place of a call of a function."""
    made = []

    def die(*_: object) -> None:
        made.append(1)
        if len(made) == call:
            raise KeyboardInterrupt

    patch.setattr(name, die)


def test_a_stop_while_the_shards_are_put_in_place_costs_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = draw(tmp_path / "images")
    build(root, tmp_path / "whole/shards")
    with monkeypatch.context() as patch:
        stop_at(patch, "stages.data.install.write_json", 1)
        with pytest.raises(KeyboardInterrupt):
            build(root, tmp_path / "stopped/shards")
    with pytest.raises(UserError, match=r"index.json is not there"):
        read_index(tmp_path / "stopped/shards")
    stop_at(monkeypatch, "os.fsync", 1)  # nothing is left to write
    build(root, tmp_path / "stopped/shards")
    assert content_of(tmp_path / "stopped/shards") == content_of(tmp_path / "whole/shards")


def test_images_that_join_later_re_write_only_the_shards_they_fall_into(tmp_path: Path):
    root = draw(tmp_path / "images", per_class=60)
    build(root, tmp_path / "shards")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "shards").glob("*.tar")}
    pixels = np.random.default_rng(1).integers(0, 256, (8, 9), dtype=np.uint8)
    (root / "unlabelled/new.png").write_bytes(encode_png(pixels))
    told: dict[str, tuple[int, int]] = {}
    build_shards(
        read_class_folders(root),
        WANTED,
        tmp_path / "shards",
        tmp_path / "work",
        1,
        lambda phase, done, total: told.update({phase: (done, total)}),
    )
    after = {path.name: path.stat().st_ino for path in (tmp_path / "shards").glob("*.tar")}
    taken, planned = told["shards taken over"]
    assert planned - taken in {1, 2}
    kept = before.keys() & after.keys()
    assert len(kept) == taken == len(before) - 1
    assert all(before[name] == after[name] for name in kept)  # linked, not even copied
    build(root, tmp_path / "anew/shards")
    assert content_of(tmp_path / "anew/shards") == content_of(tmp_path / "shards")


def test_a_shard_that_was_damaged_since_is_written_anew(tmp_path: Path):
    root = draw(tmp_path / "images")
    build(root, tmp_path / "shards")
    good = content_of(tmp_path / "shards")
    path = next((tmp_path / "shards").glob("train-*.tar"))
    path.write_bytes(path.read_bytes()[:-1] + b"1")
    build(root, tmp_path / "shards")
    assert content_of(tmp_path / "shards") == good


def test_damaged_images_are_listed_with_their_reason_and_left_out(tmp_path: Path):
    root = draw(tmp_path / "images")
    (root / "cat/03.png").write_bytes(b"")
    (root / "dog/05.png").write_bytes((root / "dog/05.png").read_bytes()[:60])
    content = build(root, tmp_path / "shards")
    first, second = content["quarantine"]
    assert first == {"key": "cat/03", "reason": "empty"}
    assert second["key"] == "dog/05"
    assert sum(split["images"] for split in content["splits"].values()) == 58
    lines = (tmp_path / "shards/quarantine.csv").read_text().splitlines()
    assert lines[:2] == ["key,reason", "cat/03,empty"]


def test_too_many_damaged_images_stop_and_leave_what_was_there(tmp_path: Path):
    root = draw(tmp_path / "images")
    build(root, tmp_path / "shards")
    before = content_of(tmp_path / "shards")
    (root / "cat/03.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 60 images can't be used"):
        build(root, tmp_path / "shards", replace(WANTED, quarantine_tolerance=0.01))
    assert content_of(tmp_path / "shards") == before


def test_no_two_copies_stand_on_two_sides(tmp_path: Path):
    root = draw(tmp_path / "images")
    for number in range(20):  # every labelled picture stands among the unlabelled ones as well
        for name in ("cat", "dog"):
            data = (root / f"{name}/{number:02d}.png").read_bytes()
            (root / f"unlabelled/{name}-{number}.png").write_bytes(data)
    content = build(root, tmp_path / "shards")
    index = read_index(tmp_path / "shards")
    sides = [set(read_members(index, split).content.tolist()) for split in content["splits"]]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    assert len(content["duplicates"]) == 40
    dropped = [group["dropped"] for group in content["duplicates"] if "dropped" in group]
    assert len(dropped) == 16
    assert all(keys[0].startswith("unlabelled/") for keys in dropped)


def test_new_shards_replace_all_of_the_old(tmp_path: Path):
    root = draw(tmp_path / "images")
    build(root, tmp_path / "shards", replace(WANTED, images_per_shard=5))
    build(root, tmp_path / "shards")
    names = [
        shard["name"]
        for shard in json.loads((tmp_path / "shards/index.json").read_text())["splits"]["train"][
            "shards"
        ]
    ]
    assert sorted(p.name for p in (tmp_path / "shards").glob("train-*.tar")) == names
