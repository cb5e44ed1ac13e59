"""What stages.look tells of a folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def look(*words: object, code: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "stages.look", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def draw(path: Path, width: int, height: int, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), colour, dtype=np.uint8)).save(path)


def test_sizes_colours_labels_and_damage_are_told(tmp_path: Path):
    for number in range(6):
        draw(tmp_path / f"train/cat/{number}.png", 60 + number, 40, (9, 9, 15))
        draw(tmp_path / f"test/dog/{number}.jpg", 30, 50, (200, 10, 10))
        draw(tmp_path / f"train/dog/{number}.png", 60, 40, (9, 9, 9))
        draw(tmp_path / f"unlabelled/{number}.png", 80, 80, (9, 9, 9))
    (tmp_path / "unlabelled/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = look(tmp_path)
    assert found["data"] == {"source": "folder", "root": str(tmp_path), "unlabelled": []}
    assert (found["images"], found["unlabelled"], found["decoded"]) == (25, 7, 25)
    assert found["class_names"] == ["cat", "dog"]
    assert found["per_class"] == {"train": [6, 6], "test": [0, 6]}
    assert found["splits"] == {"test": 6, "train": 12, "not said": 7}
    assert found["shorter_side"] == [30, 30, 40, 80, 80]
    assert found["colourful"] == 6  # a faint tint is no colour
    assert [key for key, _ in found["damaged"]] == ["unlabelled/broken"]


def test_a_folder_that_can_not_be_used_ends_with_2_and_one_message(tmp_path: Path):
    message = look(tmp_path / "nowhere", code=2)
    assert message.startswith("error: ")
    assert "nowhere is not there" in message
    assert "Traceback" not in message
