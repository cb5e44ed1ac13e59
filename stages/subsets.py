"""Which training images count as labelled: a list of keys for each seed."""

import argparse
import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.index import Index, read_index, read_members
from stages.data.label_fractions import choose_labelled, read_subset
from stages.data.member_table import MemberTable
from stages.errors import UserError, run_stage
from stages.params import load_params
from stages.records import write_record
from stages.sections.kinds import LABEL_LISTS

SHARDS, SUBSETS = Path("data/shards"), Path("data/subsets")


def main() -> None:
    fraction = parse_arguments()
    params = load_params()
    begun = time.perf_counter()
    index = read_index(SHARDS)
    train = read_members(index, "train")
    seeds = range(params.finetune.seeds)
    name = params.finetune.label_lists.get(fraction)
    if name is None:
        classes_N = train.class_number.astype(np.int64)
        chosen = [choose_labelled(train.keys, classes_N, fraction, seed) for seed in seeds]
        origin: dict[str, Any] = {}
    else:
        keys, left_out = listed_keys(LABEL_LISTS / name, index, train)
        chosen = [keys for _ in seeds]
        origin = {"list": name, "left_out": left_out}
    folder = SUBSETS / fraction
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("seed-*.txt"):
        old.unlink()  # of more seeds than there are now
    rows: list[dict[str, Any]] = []
    for seed, keys in enumerate(chosen):
        text = "".join(f"{key}\n" for key in keys)
        partial = folder / f"seed-{seed}.txt.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / f"seed-{seed}.txt")
        digest = hashlib.sha256(text.encode()).hexdigest()
        made = composition(keys, train, len(index.class_names))
        made["near_duplicates"] = near_copies(keys, index)
        rows.append({"seed": seed, "sha256": digest, **made})
    counts = [count for row in rows for count in row["per_class"]]
    write_record(
        f"subsets/{fraction}",
        {
            "labels": len(chosen[0]),
            "per_class_min": min(counts),
            "per_class_max": max(counts),
            "duplicates": max(row["duplicates"] for row in rows),
            "near_duplicates": max(row["near_duplicates"] for row in rows),
            "seconds": round(time.perf_counter() - begun, 2),
        },
        {
            "label_fraction": fraction,
            **origin,
            "seeds": rows,
            "class_names": list(index.class_names),
            "data_fingerprint": index.fingerprint,
        },
    )


def listed_keys(path: Path, index: Index, train: MemberTable) -> tuple[list[str], dict[str, int]]:
    """The labelled training images that a list names, sorted, the same for every seed.

    What the shards set apart or refused can't be trained on, so such names are left out; how many,
    by reason, is told and returned.

    Raises:
        UserError: the list can't be read, a line names no image or one twice, or nothing is left.
    """
    why = {
        **{entry["key"]: "quarantined" for entry in index.content["quarantine"]},
        **{
            key: f"copies of {group['kept']} images"
            for group in index.content["duplicates"]
            for key in group.get("dropped", ())
        },
        **{
            key: "near copies of held-out images"
            for group in index.content.get("near_duplicates", ())
            for key in group.get("dropped", ())
        },
        **{key: name for name in ("test", "validation") for key in read_members(index, name).keys},
        **{
            key: "without a label"
            for key, number in zip(train.keys, train.class_number, strict=True)
            if number < 0
        },
    }
    labelled = [key for key in train.keys if key not in why]
    chosen, unusable = read_subset(path, labelled, why)
    if not chosen:
        raise UserError(f"{path} names no labelled training image, so there is nothing to learn.")
    left_out = dict(Counter(why[key] for key in unusable))
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        total = len(chosen) + len(unusable)
        print(f"{path}: {len(unusable)} of its {total} images are left out ({reasons})", flush=True)
    return sorted(chosen), left_out


def composition(keys: list[str], train: MemberTable, n_classes: int) -> dict[str, Any]:
    """Labels per class of a subset, and how many of its images are copies of another of it."""
    row_of = {key: row for row, key in enumerate(train.keys)}
    rows = [row_of[key] for key in keys]
    return {
        "per_class": np.bincount(train.class_number[rows], minlength=n_classes).tolist(),
        "duplicates": len(rows) - len(np.unique(train.content[rows])),
    }


def near_copies(keys: list[str], index: Index) -> int:
    """How many images of a subset are near copies of another of it."""
    chosen = set(keys)
    groups = index.content.get("near_duplicates", ())
    return sum(max(len(chosen.intersection(group["keys"])) - 1, 0) for group in groups)


def parse_arguments() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    return parser.parse_args().fraction


if __name__ == "__main__":
    run_stage(main)
