"""Images and labels that can't be used: one message, exit code 2, and what was done is kept."""

import io
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stages import shard, subsets
from stages.data.images import encode_png
from stages.errors import run_stage

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)


def png() -> bytes:
    return encode_png(RNG.integers(0, 256, (8, 8), dtype=np.uint8))


def put(*files: str, data: bytes | None = None) -> None:
    """Pictures, each another, or files of these bytes."""
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(png() if data is None else data)


def classes(*names: str, each: int = 12) -> None:
    put(*(f"pictures/{name}/{number:02d}.png" for name in names for number in range(each)))


def write_params(fractions: list[Any] | None = None, **data: Any) -> None:
    params = yaml.safe_load((ROOT / "pipeline/profiles/quick.yaml").read_text(encoding="utf-8"))
    values = {"source": "folder", "root": "pictures", "validation_images": 4, "test_fraction": 0.2}
    params["data"] |= values | data
    params["finetune"]["label_fractions"] = fractions or [1.0]
    for stage in ("finetune", "supervised"):
        params[stage]["overrides"] = {}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def empty() -> None:
    Path("pictures").mkdir()
    write_params()


def no_folder() -> None:
    write_params()


def missing_image() -> None:
    classes("cat", "dog")
    Path("labels.csv").write_text("key,label\ncat/00,cat\ndog/00,dog\ndog/99,dog\n")
    write_params(source="labels_csv", labels_csv="labels.csv")


def other_capitals() -> None:
    classes("cat", "dog")
    Path("labels.csv").write_text("name,class\ncat/00.PNG,cat\ndog/00.png,dog\n")
    write_params(source="labels_csv", labels_csv="labels.csv")


def names_below_another_folder() -> None:
    classes("cat", "dog")
    Path("labels.csv").write_text("key,label\npictures/cat/00,cat\npictures/dog/00,dog\n")
    write_params(source="labels_csv", labels_csv="labels.csv")


def heic() -> None:
    classes("cat", "dog")
    put("pictures/dog/x.HEIC", data=b"ftypheic")
    write_params()


def home() -> None:
    write_params(root="~/pictures")


def one_class() -> None:
    classes("cat")
    write_params()


def same_key() -> None:
    classes("cat", "dog")
    put("pictures/cat/00.bmp")
    write_params()


def same_line() -> None:
    classes("cat", "dog")
    Path("labels.csv").write_text("cat/00,cat\ndog/00,dog\ncat/00,dog\n")
    write_params(source="labels_csv", labels_csv="labels.csv")


def all_damaged() -> None:
    put("pictures/cat/1.png", "pictures/dog/1.png", data=b"\x89PNG\r\n\x1a\n")
    for name in ("cat", "dog"):
        put(*(f"pictures/{name}/{number}.png" for number in range(2, 40)), data=b"")
    write_params(quarantine_tolerance=1.0)


def much_damaged() -> None:
    classes("cat", "dog")
    put("pictures/dog/xx.png", data=b"GIF89a")
    write_params()


def too_few() -> None:
    classes("cat", "dog", each=3)
    write_params(test_fraction=0.1)


def class_all_damaged() -> None:
    classes("cat", "dog", each=40)
    put("pictures/fox/1.png", "pictures/fox/2.png", data=b"")
    write_params(quarantine_tolerance=0.5)


def unlabelled_missing() -> None:
    classes("cat", "dog")
    write_params(unlabelled=["bulk"])


def pickle_in_a_shard() -> None:
    Path("pictures").mkdir()
    with tarfile.open("pictures/a.tar", "w") as tar:
        data = pickle.dumps({"x": 1})
        info = tarfile.TarInfo("1.pyd")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    write_params(source="webdataset")


def no_data_set() -> None:
    write_params(source="torchvision", name="DTD", root="nowhere")


def no_name() -> None:
    write_params(source="torchvision", root="pictures")


def wrong_name() -> None:
    write_params(source="torchvision", root="pictures", name="Cifar10")


CASES: dict[Callable[[], None], str] = {
    empty: "pictures holds no image that can be used",
    no_folder: "pictures is not there",
    missing_image: "labels for 1 images that are not in pictures: dog/99",
    other_capitals: "Found: cat/00.png; capitals count.",
    names_below_another_folder: "Found: cat/00; leave out pictures/",
    heic: "dog/x.HEIC (HEIC is not read here: convert it to JPEG or PNG)",
    home: "~ is not your home",
    one_class: "only the class 'cat'; a classifier needs at least two",
    same_key: "the same key twice: cat/00",
    same_line: "labels.csv, line 3: the same key twice: cat/00",
    all_damaged: "all 78 images can't be used",
    much_damaged: "1 of 25 images can't be used, more than data.quarantine_tolerance (0.01) allows",
    too_few: "0.1 of 6 labelled images is 0, too few to test 2 classes",
    class_all_damaged: "no labelled training image is left of 1 classes, the first of them 'fox'",
    unlabelled_missing: "bulk is not there",
    pickle_in_a_shard: "a.tar holds '1.pyd', a kind of file that can hold code",
    no_data_set: "torchvision can't read DTD in nowhere",
    no_name: "source torchvision needs name: the data set",
    wrong_name: "data.name: Input should be 'CIFAR10', 'CIFAR100', 'STL10'",
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    """What a stage says when it ends with the code of a user's mistake."""
    with pytest.raises(SystemExit) as ended:
        run_stage(main)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_one_message_and_exit_code_2(
    workspace: Path, capsys: pytest.CaptureFixture[str], case: Callable[[], None]
):
    case()
    message = told(shard.main, capsys)
    assert message.startswith("error: ")
    assert message.count("error: ") == 1
    assert CASES[case] in message
    assert "\n  " in message  # what to do, or which key
    assert not Path("data/shards/index.json").exists()


@pytest.mark.parametrize("case", [empty, all_damaged, one_class], ids=lambda case: case.__name__)
def test_shards_that_were_there_stay(
    workspace: Path, capsys: pytest.CaptureFixture[str], case: Callable[[], None]
):
    classes("cat", "dog")
    write_params()
    shard.main()
    before = {path: path.read_bytes() for path in Path("data/shards").iterdir()}
    Path("pictures").rename("elsewhere")
    case()
    told(shard.main, capsys)
    assert {path: path.read_bytes() for path in Path("data/shards").iterdir()} == before


def test_a_label_fraction_that_leaves_a_class_without_an_image(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    classes("cat", "dog", "fox", each=20)
    write_params(fractions=[0.04])
    shard.main()
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["stages.subsets", "--fraction", "0.04"])
    message = told(subsets.main, capsys)
    assert "finetune.label_fractions: 0.04 of 44 labelled training images is 1, too few for 3" in (
        message
    )
    assert "The smallest fraction that works is 0.069; or write 1_per_class." in message


def test_a_process_ends_with_2_and_without_a_traceback(workspace: Path):
    one_class()
    done = subprocess.run(
        [sys.executable, "-m", "stages.shard"],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "only the class 'cat'" in done.stderr
    assert "Traceback" not in done.stderr
