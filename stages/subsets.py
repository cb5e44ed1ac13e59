"""Which training images count as labelled: a list of keys for each seed."""

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.index import read_index, read_members
from stages.data.label_fractions import choose_labelled
from stages.data.member_table import MemberTable
from stages.errors import run_stage
from stages.params import load_params
from stages.records import write_record

SHARDS, SUBSETS = Path("data/shards"), Path("data/subsets")


def main() -> None:
    fraction = parse_arguments()
    params = load_params()
    begun = time.perf_counter()
    index = read_index(SHARDS)
    train = read_members(index, "train")
    chosen = [
        choose_labelled(train.keys, train.class_number.astype(np.int64), fraction, seed)
        for seed in range(params.finetune.seeds)
    ]
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
        rows.append({"seed": seed, "sha256": digest, **made})
    counts = [count for row in rows for count in row["per_class"]]
    write_record(
        f"subsets/{fraction}",
        {
            "labels": len(chosen[0]),
            "per_class_min": min(counts),
            "per_class_max": max(counts),
            "duplicates": max(row["duplicates"] for row in rows),
            "seconds": round(time.perf_counter() - begun, 2),
        },
        {
            "label_fraction": fraction,
            "seeds": rows,
            "class_names": list(index.class_names),
            "data_fingerprint": index.fingerprint,
        },
    )


def composition(keys: list[str], train: MemberTable, n_classes: int) -> dict[str, Any]:
    """Labels per class of a subset, and how many of its images are copies of another of it."""
    row_of = {key: row for row, key in enumerate(train.keys)}
    rows = [row_of[key] for key in keys]
    return {
        "per_class": np.bincount(train.class_number[rows], minlength=n_classes).tolist(),
        "duplicates": len(rows) - len(np.unique(train.content[rows])),
    }


def parse_arguments() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    return parser.parse_args().fraction


if __name__ == "__main__":
    run_stage(main)
