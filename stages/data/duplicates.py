"""Exact copies of a picture: found by content, and never on two sides of a split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.data.sources import Split

HELD_OUT_FIRST: tuple[Split, ...] = ("test", "validation", "train")


@dataclass(frozen=True)
class Copies:
    """Images with the same pixels.

    Attributes:
        keys: sorted; at least two.
        kept: the side that they stand on.
        dropped: of keys, what is left out because its copy stands on that side.
        class_names: the labels they have; two or more contradict each other.
    """

    keys: tuple[str, ...]
    kept: Split
    dropped: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def as_record(self) -> dict[str, object]:
        """For the index and the report; what is empty is left out."""
        record: dict[str, object] = {"keys": list(self.keys), "kept": self.kept}
        if self.dropped:
            record["dropped"] = list(self.dropped)
        if len(self.class_names) > 1:
            record["class_names"] = list(self.class_names)
        return record


def find_copies(
    content_of: Mapping[str, bytes],
    split_of: Mapping[str, Split],
    class_name_of: Mapping[str, str | None],
) -> list[Copies]:
    """All groups of images with the same content, by their first key.

    Where a group stands on two sides, the side held out longest keeps its copies (test before
    validation before train): a test set stays what its authors made it, and training loses the
    copy.
    """
    groups: dict[bytes, list[str]] = {}
    for key in sorted(content_of):
        groups.setdefault(content_of[key], []).append(key)
    return sorted(
        (_settle(keys, split_of, class_name_of) for keys in groups.values() if len(keys) > 1),
        key=lambda copies: copies.keys,
    )


def _settle(
    keys: Sequence[str],
    split_of: Mapping[str, Split],
    class_name_of: Mapping[str, str | None],
) -> Copies:
    kept = next(side for side in HELD_OUT_FIRST if any(split_of[key] == side for key in keys))
    names = {class_name_of[key] for key in keys} - {None}
    return Copies(
        keys=tuple(keys),
        kept=kept,
        dropped=tuple(key for key in keys if split_of[key] != kept),
        class_names=tuple(sorted(str(name) for name in names)),
    )
