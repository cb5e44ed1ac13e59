"""What lies where the images come from: names, sizes and times, so that dvc sees a change.

dvc itself can't depend on a folder that params.yaml may leave out, and would read every byte of
one. This stage runs each time, reads no image, and writes the same file where nothing changed; the
stage shard depends on that file. A place that can't be reached counts as it was seen last, so that
a machine that has only the shards, or a night without network, runs on with what it has.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.data.folders import files_below
from stages.errors import StageError, run_stage
from stages.params import load_params
from stages.records import read_json, write_json
from stages.sections.data import DataParams

LISTING = Path("data/listing.json")
_INDEX = "index.json"  # of published shards; it covers all others
_MOST_INDEX_BYTES = 64 * 2**20
_OF_FILES = {"folder", "labels_csv", "webdataset"}

Seen = dict[str, Any]


def main() -> None:
    params = load_params().data
    before = read_json(LISTING) if LISTING.is_file() else {}
    found = {}
    for place in places_of(params):
        seen = look_at(place, params)
        if seen is None:
            print(f"listing: {place} can't be seen; taken as it was last")
            seen = before.get(place)
        elif seen != before.get(place):
            print(f"listing: {place} {_difference(before.get(place), seen)}")
        found[place] = seen
    write_json(LISTING, found)


def places_of(params: DataParams) -> list[str]:
    """The folders, files and addresses whose content may change between two runs."""
    if params.source == "published":
        return [str(params.shards_at)]
    places = [str(params.root)] if params.source in _OF_FILES else []
    if params.source == "labels_csv":
        places.append(str(params.labels_csv))
    return [*places, *params.unlabelled]


def look_at(place: str, params: DataParams) -> Seen | None:
    """What is there now; None where it can't be seen.

    Raises:
        UserError: a folder below it can't be read.
    """
    if "://" in place:
        try:
            return _at_address(place, params)
        except StageError as error:
            print(f"listing: {error}")
            return None
    path = Path(place)
    if path.is_dir():
        return _summary(_in_folder(path))
    if path.suffix == ".csv" and path.is_file():
        return _summary([(path.name, path.stat().st_size, _sha256(path.read_bytes()))])
    return _summary(_of(path.parent, [path.name])) if path.is_file() else None


def _in_folder(root: Path) -> Iterator[tuple[str, int, int]]:
    return _of(root, sorted(files_below(root)))


def _of(root: Path, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Name, bytes and time of the last change; a file that goes meanwhile was never there."""
    for name in names:
        try:
            found = (root / name).stat()
        except FileNotFoundError:
            continue
        yield name, found.st_size, found.st_mtime_ns


def _at_address(address: str, params: DataParams) -> Seen:
    from stages.data.remote import Remote  # its packages, which a folder of this disk needs not

    remote = Remote(address)
    if params.source == "published":
        index = remote.read(_INDEX, _MOST_INDEX_BYTES)
        return _summary([(_INDEX, len(index), _sha256(index))])
    marks = remote.marks(params.shards)  # a shard with other labels may be of the same size
    return _summary((name, int(mark.split()[0]), mark) for name, mark in sorted(marks.items()))


def _summary(files: Iterable[tuple[str, int, int | str]]) -> Seen:
    digest, count, total = hashlib.sha256(), 0, 0
    for name, n_bytes, changed in files:
        digest.update(f"{name}\0{n_bytes}\0{changed}\n".encode(errors="surrogateescape"))
        count, total = count + 1, total + n_bytes
    return {"files": count, "bytes": total, "digest": digest.hexdigest()}


def _difference(before: Seen | None, now: Seen) -> str:
    if before is None:
        return f"holds {now['files']} files"
    if before["files"] == now["files"]:
        return f"changed ({now['files']} files)"
    return f"holds {now['files']} files, {now['files'] - before['files']:+d}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    run_stage(main)
