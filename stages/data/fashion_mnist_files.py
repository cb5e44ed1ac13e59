"""The four files of Fashion-MNIST: had from a folder, the network or Debian, checked by digest.

Debian packs them without name and time in gzip's header, so the files differ from the authors'
and the content does not (with that header put back, the four MD5 sums are torchvision's). The
digests here are of the content.
"""

import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stages.errors import UserError

MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # torchvision's
DEBIAN_PACKAGE = "dataset-fashion-mnist"


@dataclass(frozen=True)
class IdxFile:
    """One of the four files: its name, and length and SHA-256 of what is inside the gzip."""

    name: str
    n_bytes: int
    sha256: str


FILES = {
    ("train", "images"): IdxFile(
        "train-images-idx3-ubyte.gz",
        47_040_016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    ("train", "labels"): IdxFile(
        "train-labels-idx1-ubyte.gz",
        60_008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    ("test", "images"): IdxFile(
        "t10k-images-idx3-ubyte.gz",
        7_840_016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    ("test", "labels"): IdxFile(
        "t10k-labels-idx1-ubyte.gz",
        10_008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_FIRST_ANSWER_SECONDS = 20.0  # a machine without network must fall through quickly
_STALL_SECONDS = 15.0
_APT_SECONDS = 300.0


def checked(root: Path) -> Path:
    """The folder that holds the four files whole: root, or FashionMNIST/raw in it.

    Raises:
        UserError: naming the file, and what was found instead.
    """
    nested = root / "FashionMNIST" / "raw"
    folder = nested if nested.is_dir() else root
    for file in FILES.values():
        problem = problem_of(folder / file.name, file)
        if problem:
            raise UserError(
                f"Fashion-MNIST in {folder}: {file.name} {problem}.\n  Put the four .gz files of "
                "the data set there, or write data.root: null in params.yaml to have them fetched."
            )
    return folder


def obtain(
    cache: Path,
    ways: dict[str, Callable[[Path], None]] | None = None,
) -> Path:
    """Fetch the four files into `cache` where they are not there yet.

    Args:
        cache: folder to keep them in.
        ways: by name, what puts the four files into a folder; tried in turn.

    Raises:
        UserError: with what each way answered.
    """
    if not any(problem_of(cache / file.name, file) for file in FILES.values()):
        return cache
    answers = []
    for name, fetch in (ways or WAYS).items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            try:
                fetch(folder)
                for file in FILES.values():
                    problem = problem_of(folder / file.name, file)
                    if problem:
                        raise FetchError(f"{file.name} {problem}")
            except FetchError as error:
                answers.append(f"{name}: {error}")
                continue
            _keep(folder, cache)
            return cache
    tried = "".join(f"\n  {number}. {answer}" for number, answer in enumerate(answers, start=2))
    raise UserError(
        "Fashion-MNIST could not be had in any of three ways:\n"
        "  1. a folder: data.root in params.yaml is null; put the four .gz files of the data set "
        f"in a folder and name it there{tried}"
    )


class FetchError(Exception):
    """A way of getting the files that does not work here, and why."""


def problem_of(path: Path, file: IdxFile) -> str | None:
    """What is wrong with one of the four files, or None."""
    if not path.is_file():
        return "is not there"
    try:
        content = unpack(path, file.n_bytes)
    except (OSError, EOFError, zlib.error) as error:
        return f"is damaged ({' '.join(str(error).split())})"
    digest = hashlib.sha256(content).hexdigest()
    if len(content) != file.n_bytes or digest != file.sha256:
        return (
            f"is another file or damaged: its content has SHA-256 {digest[:16]}..., "
            f"expected {file.sha256[:16]}..."
        )
    return None


def download(folder: Path) -> None:
    """Fetch from the mirror that torchvision uses.

    Raises:
        FetchError: no answer in time, or a wrong one.
    """
    smallest_first = sorted(FILES.values(), key=lambda file: file.n_bytes)
    first, *others = smallest_first
    failure: list[str] = []

    def ask() -> None:
        try:
            _fetch(first.name, folder)
        except FetchError as error:
            failure.append(str(error))

    # Looking up a name can't be given a time limit, so it is left behind in a thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_FIRST_ANSWER_SECONDS)
    if thread.is_alive():
        raise FetchError(f"no answer within {_FIRST_ANSWER_SECONDS:.0f} s")
    if failure:
        raise FetchError(failure[0])
    for file in others:
        _fetch(file.name, folder)


def from_debian(folder: Path) -> None:
    """Fetch Debian's package and unpack it into a folder, without installing it; needs no root.

    Raises:
        FetchError: no apt here, or it did not find the package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FetchError("apt-get and dpkg-deb are not on this machine")
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch)
        private = _private_apt(workdir)
        try:
            _run(["apt-get", "download", DEBIAN_PACKAGE], workdir)
        except FetchError:  # package lists are missing or stale: fetch lists of our own
            _run(["apt-get", *private, "update"], workdir)
            _run(["apt-get", *private, "download", DEBIAN_PACKAGE], workdir)
        packages = sorted(workdir.glob("*.deb"))
        if not packages:
            raise FetchError("apt-get download left no package")
        _run(["dpkg-deb", "-x", packages[0].name, "unpacked"], workdir)
        for file in FILES.values():
            found = sorted((workdir / "unpacked").rglob(file.name))
            if found:
                shutil.copyfile(found[0], folder / file.name)


def unpack(path: Path, n_bytes: int) -> bytes:
    """The content of a gzip file, at most one byte more than it should hold."""
    with gzip.open(path) as file:
        return file.read(n_bytes + 1)


WAYS: dict[str, Callable[[Path], None]] = {
    f"download from {MIRROR}": download,
    f"Debian's package {DEBIAN_PACKAGE}": from_debian,
}


def _fetch(name: str, folder: Path) -> None:
    try:
        with (
            urllib.request.urlopen(MIRROR + name, timeout=_STALL_SECONDS) as answer,
            (folder / name).open("wb") as file,
        ):
            shutil.copyfileobj(answer, file)
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{name}: {error}") from error


def _private_apt(workdir: Path) -> list[str]:
    """Options with which apt keeps its state in a folder of ours."""
    for name in ("lists/partial", "cache/archives/partial"):
        (workdir / name).mkdir(parents=True)
    return [
        *("-o", f"Dir::State::lists={workdir / 'lists'}"),
        *("-o", f"Dir::Cache={workdir / 'cache'}"),
    ]


def _run(command: list[str], workdir: Path) -> None:
    apt = ["-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=15"]
    if os.geteuid() == 0:
        apt += ["-o", "APT::Sandbox::User=root"]  # apt's own user may not enter our folder
    command = [command[0], *(apt if command[0] == "apt-get" else []), *command[1:]]
    try:
        subprocess.run(
            command,
            cwd=workdir,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_APT_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{command[0]} took longer than {_APT_SECONDS:.0f} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("E:")]
        reason = " ".join(lines[-1:] or error.stderr.splitlines()[-1:])
        raise FetchError(reason or f"{command[0]} exited with {error.returncode}") from error


def _keep(folder: Path, cache: Path) -> None:
    """Copy the four files into the cache, each whole or not at all."""
    cache.mkdir(parents=True, exist_ok=True)
    for file in FILES.values():
        partial = cache / f"{file.name}.partial"
        shutil.copyfile(folder / file.name, partial)
        partial.replace(cache / file.name)
