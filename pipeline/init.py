"""`python -m pipeline init DIR`: params.yaml for a folder of images, with the reasons.

The looking is done by `stages.look` in a process of its own: the pipeline imports no stage.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import profiles
from pipeline.fit import Fit, fit
from pipeline.params_text import with_values
from stages.errors import UserError
from stages.params import check_params

ROOT = Path(__file__).resolve().parents[1]


def fitted_text(
    folder: Path,
    labels: Path | None,
    unlabelled: Sequence[Path],
    profile: str | None,
) -> tuple[str, list[str]]:
    """params.yaml for the images of a folder, and a line for each thing decided.

    Args:
        folder: of images.
        labels: a list of key,label; None: looked for.
        unlabelled: further folders.
        profile: None: quick without an NVIDIA device, gpu with one.

    Raises:
        UserError: the images can't be used so; the message says why.
    """
    found = look(folder, labels, unlabelled)
    device = nvidia_device()
    why = f"{device} is here" if device else "no NVIDIA device here"
    name = profile or ("gpu" if device else "quick")
    text = profiles.text_of(name)
    decided = fit(found, yaml.safe_load(text), "asked for" if profile else why)
    new = fitted(text, decided, str(folder))
    check_params(yaml.safe_load(new), f"the params for {folder}")
    return new, decided.reasons


def look(folder: Path, labels: Path | None, unlabelled: Sequence[Path]) -> dict[str, Any]:
    """What stages.look finds in the folder.

    Raises:
        UserError: what the stage has to say of a folder that can't be used.
    """
    words = [sys.executable, "-m", "stages.look", _written(folder)]
    words += ["--labels", _written(labels)] if labels else []
    words += ["--unlabelled", *map(_written, unlabelled)] if unlabelled else []
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if done.returncode == UserError.exit_code:
        raise UserError(done.stderr.strip().removeprefix("error: "))
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def fitted(text: str, decided: Fit, folder: str) -> str:
    """A profile's text with other values; every comment and line stays where it is."""
    text = with_values(text, decided.values)
    head, profile, rest = text.partition("\nprofile: ")
    name = rest.split(maxsplit=1)[0]
    after = rest.partition("\n")[2]
    return f"{head}{profile}{name} # fitted to {folder} by python -m pipeline init\n{after}"


def nvidia_device() -> str | None:
    """The first NVIDIA device of this machine, found without torch."""
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return str(devices[0]) if devices else None


def _written(path: Path) -> str:
    """Relative where it lies below this folder, so that the project can move with its images."""
    here, there = Path.cwd().resolve(), path.absolute()
    return str(there.relative_to(here) if there.is_relative_to(here) else there)
