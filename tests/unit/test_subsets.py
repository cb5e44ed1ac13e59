import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages import shard, subsets
from stages.data.images import encode_png
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
    assert numbers == {"labels": 12, "per_class_min": 4, "per_class_max": 4, "duplicates": 0}
    details = json.loads((workspace / "metrics/subsets/4_per_class.run.json").read_text())
    assert [row["per_class"] for row in details["seeds"]] == [[4, 4, 4]] * 2
    assert details["seeds"][1]["sha256"] == hashlib.sha256(texts[1].encode()).hexdigest()
    index = json.loads((workspace / "data/shards/index.json").read_text())
    assert details["data_fingerprint"] == index["fingerprint"]


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
