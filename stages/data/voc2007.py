"""PASCAL VOC 2007's classification task: pictures that show several classes each.

The shards know one class of an image, so this is read beside them, for transfer. Read are the
lists under ImageSets/Main alone, lines of "000005 -1", which is how the task is defined; the XML
beside them is not. Shapes: N pictures of one split, K classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.sources import SPLITS, Picture, Split
from stages.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_LISTS: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}
_SHOWN, _DIFFICULT, _NOT_SHOWN = 1, 0, -1  # as the lists write them


@dataclass(frozen=True)
class VocSplit:
    """One of the official splits (train 2,501, validation 2,510 and test 4,952 pictures).

    Attributes:
        pictures: N, by their number; none has a class of its own.
        shown_NK: bool, whether the picture shows the class.
        counted_NK: bool; False where it shows nothing of the class but difficult examples, which
            the task's score leaves out.
    """

    pictures: tuple[Picture, ...]
    shown_NK: NDArray[np.bool_]
    counted_NK: NDArray[np.bool_]


def read_voc2007(root: Path) -> dict[Split, VocSplit]:
    """The splits of VOCdevkit/VOC2007 below root, as both of the authors' archives unpack.

    Raises:
        UserError: it is not there, not whole, or its lists do not agree.
    """
    folder = root / "VOCdevkit" / "VOC2007"
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not there.\n  Unpack VOCtrainval_06-Nov-2007.tar and "
            f"VOCtest_06-Nov-2007.tar (host.robots.ox.ac.uk/pascal/VOC/voc2007) in {root}."
        )
    return {split: _read_split(folder, split) for split in SPLITS}


def _read_split(folder: Path, split: Split) -> VocSplit:
    columns, names = [], None
    for class_name in CLASSES:
        path = folder / "ImageSets" / "Main" / f"{class_name}_{_LISTS[split]}.txt"
        listed = _read_list(path)
        names = list(listed) if names is None else names
        if list(listed) != names:
            raise UserError(
                f"{path} lists other pictures than {CLASSES[0]}_{_LISTS[split]}.txt.\n"
                "  Unpack the authors' archives anew."
            )
        columns.append(list(listed.values()))
    values_NK = np.array(columns, dtype=np.int8).T
    pictures = tuple(
        Picture(name, "jpg", folder / "JPEGImages" / f"{name}.jpg", None, split)
        for name in names or ()
    )
    missing = [picture.key for picture in pictures if not Path(str(picture.location)).is_file()]
    if missing:
        raise UserError(
            f"{folder / 'JPEGImages'} lacks {len(missing)} of the pictures that the lists name, "
            f"the first of them {missing[0]}.jpg.\n  Unpack both archives, also the test one."
        )
    return VocSplit(pictures, values_NK == _SHOWN, values_NK != _DIFFICULT)


def _read_list(path: Path) -> dict[str, int]:
    """Picture number and value of each line, in the file's order."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} can't be read ({error}).\n  Unpack both of the authors' archives: the lists "
            "of the test split are in the second."
        ) from error
    listed: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        cells = line.split()
        values = {str(value) for value in (_SHOWN, _DIFFICULT, _NOT_SHOWN)}
        if len(cells) != 2 or not cells[0].isdecimal() or cells[1] not in values:
            raise UserError(
                f"{path}, line {number}: found {line!r}; expected a picture and 1, 0 or -1."
            )
        listed[cells[0]] = int(cells[1])
    if not listed:
        raise UserError(f"{path} is empty.\n  Unpack the authors' archives anew.")
    return listed
