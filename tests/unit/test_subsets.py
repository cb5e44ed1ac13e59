import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages import shard, subsets
from stages.data.images import encode_png
from stages.data.index import read_index, read_members
from stages.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose shards are made: 60 training images of 3 classes."""
    folder = tmp_path_factory.mktemp("workspace")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        for split, count in (("train", 24), ("test", 4)):
            (folder / "pictures" / split / name).mkdir(parents=True)
            for number in range(count):
                data = encode_png(rng.integers(0, 256, (8, 8), dtype=np.uint8))
                (folder / f"pictures/{split}/{name}/{number:02d}.png").write_bytes(data)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"source": "folder", "root": "pictures", "validation_images": 12}
    params["finetune"]["seeds"] = 2
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shard.main()
    return folder


@pytest.fixture
def workspace(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def run(monkeypatch: pytest.MonkeyPatch, fraction: str) -> None:
    monkeypatch.setattr("sys.argv", ["stages.subsets", "--fraction", fraction])
    subsets.main()


def test_a_list_of_keys_for_each_seed(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    folder = workspace / "data/subsets/4_per_class"
    folder.mkdir(parents=True)
    (folder / "seed-7.txt").touch()  # of a run with more seeds
    run(monkeypatch, "4_per_class")
    assert sorted(path.name for path in folder.iterdir()) == ["seed-0.txt", "seed-1.txt"]
    texts = [(folder / f"seed-{seed}.txt").read_text() for seed in range(2)]
    keys = [text.splitlines() for text in texts]
    assert keys[0] != keys[1]
    for chosen in keys:
        assert chosen == sorted(set(chosen))
        assert [key.split("/")[:2] for key in chosen] == [
            ["train", name] for name in ("ant", "bee", "cat") for _ in range(4)
        ]
    numbers = json.loads((workspace / "metrics/subsets/4_per_class.json").read_text())
    assert numbers.pop("seconds") >= 0
    assert numbers == {
        "labels": 12,
        "per_class_min": 4,
        "per_class_max": 4,
        "duplicates": 0,
        "near_duplicates": 0,
    }
    details = json.loads((workspace / "metrics/subsets/4_per_class.run.json").read_text())
    assert [row["per_class"] for row in details["seeds"]] == [[4, 4, 4]] * 2
    assert details["seeds"][1]["sha256"] == hashlib.sha256(texts[1].encode()).hexdigest()
    index = json.loads((workspace / "data/shards/index.json").read_text())
    assert details["data_fingerprint"] == index["fingerprint"]


def test_near_copies_inside_a_subset_are_counted(workspace: Path):
    groups = [{"keys": ["a", "b", "c"]}, {"keys": ["d", "x"]}, {"keys": ["y", "z"]}]
    index = replace(read_index(workspace / "data/shards"), content={"near_duplicates": groups})
    assert subsets.near_copies(["a", "b", "c", "d", "e", "x"], index) == 3
    assert subsets.near_copies(["a", "d", "y"], index) == 0


def test_a_smaller_fraction_lies_inside_a_larger_one(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    found = []
    for fraction in ("1_per_class", "0.2", "0.5", "1.0"):
        run(monkeypatch, fraction)
        text = (workspace / f"data/subsets/{fraction}/seed-1.txt").read_text()
        found.append(set(text.splitlines()))
    assert [len(keys) for keys in found] == [3, 12, 30, 60]
    assert found[0] < found[1] < found[2] < found[3]


def test_subsets_survive_other_shards(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(made)
    run(monkeypatch, "0.3")
    before = (made / "data/subsets/0.3/seed-0.txt").read_text()
    text = (made / "params.yaml").read_text()
    fingerprint = json.loads((made / "data/shards/index.json").read_text())["fingerprint"]
    (made / "params.yaml").write_text(text.replace("images_per_shard: 5000", "images_per_shard: 7"))
    try:
        shard.main()
        index = json.loads((made / "data/shards/index.json").read_text())
        assert index["fingerprint"] != fingerprint
        run(monkeypatch, "0.3")
        assert (made / "data/subsets/0.3/seed-0.txt").read_text() == before
    finally:
        (made / "params.yaml").write_text(text)
        shard.main()


def test_too_small_a_fraction_writes_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"0.04 of 60 .* is 2, too few for 3 classes"):
        run(monkeypatch, "0.04")
    assert not (workspace / "data/subsets/0.04").exists()


@pytest.fixture
def listed(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workspace with a list for the fraction 0.1; the path of the list."""
    monkeypatch.chdir(made)
    text = (made / "params.yaml").read_text()
    params = yaml.safe_load(text)
    params["finetune"]["label_lists"] = {"0.1": "tenth.txt"}
    (made / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    (made / "stages/label_lists").mkdir(parents=True, exist_ok=True)
    yield made / "stages/label_lists/tenth.txt"
    (made / "params.yaml").write_text(text)


def keys_of(split: str) -> list[str]:
    return sorted(read_members(read_index(Path("data/shards")), split).keys)


def test_a_list_stands_in_place_of_the_draw_for_every_seed(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    wanted, set_apart = keys_of("train")[::7], keys_of("validation")[:2]
    lines = [f"{key}.png" for key in reversed([*wanted, *set_apart])]
    listed.write_text("\n".join(lines) + "\n")
    run(monkeypatch, "0.1")
    for seed in range(2):
        assert Path(f"data/subsets/0.1/seed-{seed}.txt").read_text().splitlines() == wanted
    details = json.loads(Path("metrics/subsets/0.1.run.json").read_text())
    assert details["list"] == "tenth.txt"
    assert details["left_out"] == {"validation": 2}
    assert "2 of its 11 images are left out (2 validation)" in capsys.readouterr().out
    run(monkeypatch, "0.2")  # has no list
    drawn = [Path(f"data/subsets/0.2/seed-{seed}.txt").read_text() for seed in range(2)]
    assert drawn[0] != drawn[1]


def test_lines_that_name_no_image_are_counted_and_nothing_is_written(
    listed: Path, monkeypatch: pytest.MonkeyPatch
):
    listed.write_text("n01440764_10183.JPEG\nn02113978_1310.JPEG\n" + keys_of("train")[0])
    with pytest.raises(UserError, match=r"2 of its lines(.|\n)*line 1, n01440764_10183\.JPEG: no"):
        run(monkeypatch, "0.1")
    listed.write_text(keys_of("validation")[0])
    with pytest.raises(UserError, match=r"tenth\.txt names no labelled training image"):
        run(monkeypatch, "0.1")
    listed.unlink()
    with pytest.raises(UserError, match=r"tenth\.txt is not there"):
        run(monkeypatch, "0.1")
