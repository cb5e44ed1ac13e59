"""Reading what the stages wrote: nothing where they have not run, an error where it is damaged."""

import csv
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from stages.errors import UserError
from stages.records import read_json

Record = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def read_curve(path: Path, method: str | None = None) -> list[dict[str, float]]:
    """The rows of a curve, or those of one method; empty fields are left out.

    Raises:
        UserError: the file is there and holds something else.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                _numbers(row) for row in csv.DictReader(file) if row.pop("method", None) == method
            ]
    except ValueError as error:
        raise UserError(_damaged(path, error)) from None


def read_arrays(path: Path) -> Arrays:
    """The arrays of an .npz, or nothing where the stage has not run.

    Raises:
        UserError: the file is there and is not one.
    """
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, BadZipFile, EOFError) as error:
        raise UserError(_damaged(path, error)) from None


def _numbers(row: dict[str, str]) -> dict[str, float]:
    return {column: float(value) for column, value in row.items() if value not in {"", None}}


def read_if_there(path: Path) -> Record:
    """The JSON of a file, or nothing where the stage has not run.

    Raises:
        UserError: the file is there and is not JSON.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} can't be read: {error}\n  Delete it and run `dvc repro`: its stage writes it anew."
    )
