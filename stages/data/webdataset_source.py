"""Someone's WebDataset shards as a source: images by key, classes from .cls or .json members.

Keys are WebDataset's: the path in the tar up to the first dot after the last slash. Nothing in a
shard is unpickled or run; a member whose readers would do so refuses the shard.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.data.images import SUFFIXES
from stages.data.index import FORMAT, INDEX_NAME, read_index
from stages.data.sources import (
    SPLIT_NAMES,
    Picture,
    Source,
    Split,
    make_source,
    problem_of_name,
    some,
)
from stages.data.tar_reader import CLASS_ENDING, Member, list_members
from stages.errors import UserError

_PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
_MOST_LABEL_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class TarImage:
    """Where one picture stands in a shard."""

    path: Path
    offset: int
    n_bytes: int

    def read_bytes(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.n_bytes)


def read_webdataset(root: Path, shards: Sequence[str], json_label: str) -> Source:
    """The images of shards; a split where every shard's path names one.

    Classes are numbers as text, or their names where the folder is one of ours.

    Args:
        root: a folder with .tar files, or one such file.
        shards: only these files below root; empty: all.
        json_label: the key of a .json member that holds the class, where there is no .cls.

    Raises:
        UserError: no shard, one that is damaged or unsafe, no image, no label, a key twice.
    """
    paths = shard_paths(root, shards)
    splits = [_split_of(path, root) for path in paths]
    told = all(splits)
    pictures, refused, passed_over = [], [], Counter[str]()
    for path, split in zip(paths, splits, strict=True):
        found = read_shard(path, json_label)
        pictures += [replace(p, split=split if told else None) for p in found.pictures]
        refused += found.refused
        passed_over += found.passed_over
    pictures = _with_keys_of_their_own(pictures)
    names = _own_class_names(root)
    if names:
        pictures = [replace(p, class_name=_named(p.class_name, names, root)) for p in pictures]
    source = make_source(pictures, sorted(refused), str(root))
    ordered = tuple(names) if names else source.class_names
    notes: dict[str, object] = {"webdataset_shards": len(paths)}
    if passed_over:
        notes["members_passed_over"] = dict(sorted(passed_over.items()))
    return replace(source, class_names=ordered, notes=notes)


def shard_paths(root: Path, shards: Sequence[str] = ()) -> list[Path]:
    """The shards of a folder in order, or those that are named.

    Raises:
        UserError: there is none, one is missing, or one is packed.
    """
    if not root.exists():
        raise UserError(
            f"{root} is not there.\n  params.yaml, data.root must name a folder of .tar shards."
        )
    if shards:
        paths = [root / name for name in shards]
        missing = [name for name, path in zip(shards, paths, strict=True) if not path.is_file()]
        if missing:
            raise UserError(
                f"{root} lacks {len(missing)} of data.shards: {some(missing)}.\n"
                "  Each must be a .tar file below data.root."
            )
    else:
        paths = [root] if root.is_file() else sorted(p for p in root.rglob("*.tar") if p.is_file())
    packed = [p.name for p in (paths or root.rglob("*")) if p.name.lower().endswith(_PACKED)]
    if packed:
        raise UserError(
            f"{root} holds packed shards: {some(sorted(packed))}.\n  An image in one can't be read "
            "by its place; unpack them to plain .tar files."
        )
    if not paths:
        raise UserError(
            f"{root} holds no .tar file.\n  params.yaml, data.root must name a folder of shards."
        )
    return paths


@dataclass(frozen=True)
class Shard:
    """What was found in one shard; see Source."""

    pictures: Sequence[Picture]
    refused: Sequence[tuple[str, str]]
    passed_over: Counter[str]


def read_shard(path: Path, json_label: str | None) -> Shard:
    """The samples of a shard.

    Args:
        path: the shard.
        json_label: see read_webdataset; None: labels are not read.

    Raises:
        UserError: it is damaged or unsafe, or a key has two members of one ending.
    """
    samples: dict[str, dict[str, Member]] = {}
    for member in list_members(path, foreign=True):
        sample = samples.setdefault(member.key, {})
        if member.ending in sample:
            raise UserError(
                f"shard {path}: the same key twice: {member.key}.{member.ending}.\n"
                "  Keep one sample of each key."
            )
        sample[member.ending] = member
    pictures, refused, passed_over = [], [], Counter[str]()
    for key, sample in samples.items():
        images = [ending for ending in sample if f".{ending}" in SUFFIXES]
        others = [e for e in sample if e not in images and e not in {CLASS_ENDING, "json"}]
        passed_over.update(others)
        try:
            label = _label(path, sample, json_label)
            problem = problem_of_name(key)
            if not images and len(others) == len(sample):
                continue  # no image and no label: a member of no interest
            if len(images) != 1:
                problem = f"has {len(images)} images: {', '.join(images)}" if images else "no image"
        except ValueError as error:
            problem = str(error)
        if problem:
            refused.append((f"{path.name}:{key}", problem))
            continue
        image = sample[images[0]]
        place = TarImage(path, image.offset, image.n_bytes)
        pictures.append(Picture(key, SUFFIXES[f".{images[0]}"], place, label))
    return Shard(pictures, refused, passed_over)


def _label(path: Path, sample: dict[str, Member], json_label: str | None) -> str | None:
    """The class of a sample as text, from its .cls or else its .json.

    Raises:
        ValueError: it is not what a class can be.
    """
    if json_label is None:
        return None
    if CLASS_ENDING in sample:
        return _class_text(_text_of(path, sample[CLASS_ENDING]).strip(), ".cls")
    if "json" not in sample:
        return None
    try:
        content = json.loads(_text_of(path, sample["json"]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json can't be read ({error})") from None
    value = content.get(json_label) if isinstance(content, dict) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"its .json has no text or whole number as {json_label}")
    return _class_text(str(value).strip(), f".json, {json_label},")


def _text_of(path: Path, member: Member) -> str:
    if member.n_bytes > _MOST_LABEL_BYTES:
        raise ValueError(f"its .{member.ending} has {member.n_bytes} bytes")
    try:
        return TarImage(path, member.offset, member.n_bytes).read_bytes().decode()
    except UnicodeDecodeError:
        raise ValueError(f"its .{member.ending} is no text") from None


def _class_text(text: str, where: str) -> str | None:
    """A class; none where it is empty or, as many write it, -1."""
    if len(text) > 200 or not text.isprintable():
        raise ValueError(f"its {where} is no class: {text[:50]!r}")
    return None if text in {"", "-1"} else text


def _split_of(path: Path, root: Path) -> Split | None:
    """By a word of the shard's path: train/0001.tar, imagenet-val-000123.tar."""
    inside = path.relative_to(root) if path != root else Path(path.name)
    words = re.split(r"[^a-z]+", inside.with_suffix("").as_posix().lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _with_keys_of_their_own(pictures: list[Picture]) -> list[Picture]:
    """Where shards count their samples from 0 each, the shard's name is put before every key."""
    if len({picture.key for picture in pictures}) == len(pictures):
        return pictures
    return [replace(p, key=f"{_shard_of(p).stem}/{p.key}") for p in pictures]


def _shard_of(picture: Picture) -> Path:
    assert isinstance(picture.location, TarImage)
    return picture.location.path


def _own_class_names(root: Path) -> list[str]:
    """The class names of a folder that the stage shard wrote; none elsewhere."""
    path = root / INDEX_NAME
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return []
    return list(read_index(root).class_names)


def _named(number: str | None, names: Sequence[str], root: Path) -> str | None:
    if number is None:
        return None
    if not number.isdecimal() or int(number) >= len(names):
        raise UserError(
            f"{root} has a sample of class {number!r}, and its index names {len(names)} classes.\n"
            "  Fetch the folder again from where it came."
        )
    return names[int(number)]
