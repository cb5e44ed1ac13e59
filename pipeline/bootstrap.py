"""`make setup`: the locked packages in .venv, starting from python3 and nothing else.

Runs on the system's Python, before anything is installed, so it uses the standard library only.
It looks for a Python that the project supports, finds or fetches uv (into .venv-tools, never
into the system), and lets uv make .venv equal to requirements.lock. Where packages come from is
the machine's affair: pip and uv read their own settings.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
VENV = ROOT / ".venv"
TOOLS = ROOT / ".venv-tools"
STAMP = VENV / "installed-from"
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
SUPPORTED = ((3, 11), (3, 12), (3, 13))


class SetupError(Exception):
    """A message for the person who typed make."""


def main() -> int:
    try:
        wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
        if not is_up_to_date(wanted):
            python = find_python()
            uv = find_uv() or fetch_uv(python)
            install(uv, python)
            STAMP.write_text(wanted + "\n", encoding="utf-8")
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def is_up_to_date(wanted: str) -> bool:
    """Whether .venv holds a working, supported Python and what the lock asks for."""
    try:
        installed = STAMP.read_text(encoding="utf-8").strip()
    except OSError:
        return False
    return installed == wanted and version_of(str(VENV / "bin" / "python")) in SUPPORTED


def version_of(python: str) -> tuple[int, int] | None:
    """Major and minor version, or None where this Python does not start."""
    try:
        answer = _run([python, "-c", "import sys; print(*sys.version_info[:2])"])
        major, minor = answer.stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return int(major), int(minor)


def find_python() -> str:
    """The Python that started us, or another on PATH, whichever the project supports."""
    asked = [sys.executable, "python3", *(f"python3.{minor}" for _, minor in SUPPORTED)]
    seen = []
    for name in asked:
        version = version_of(name)
        if version in SUPPORTED:
            return name
        if version is not None:
            seen.append(f"{name} is {version[0]}.{version[1]}")
    raise SetupError(
        "Python 3.11, 3.12 or 3.13 is needed, and none was found "
        f"({'; '.join(seen) or 'no python3 on PATH'}).\n"
        "  On Debian or Ubuntu: sudo apt-get install python3.12 (or the one your release has),\n"
        "  or name one: make setup PYTHON=/path/to/python3.12"
    )


def find_uv() -> list[str] | None:
    """Uv from PATH, or the one fetched earlier."""
    for place in (shutil.which("uv"), TOOLS / "bin" / "uv"):
        if place and Path(place).exists():
            try:
                _run([str(place), "--version"])
            except (OSError, subprocess.CalledProcessError):
                continue
            return [str(place)]
    return None


def fetch_uv(python: str) -> list[str]:
    """Uv in .venv-tools, by the first way that this machine allows."""
    ways: tuple[tuple[str, Callable[[str], None]], ...] = (
        ("python3 -m venv", _fetch_with_venv),
        ("python3 -m pip", _fetch_with_pip),
        (
            "Debian's python3-pip-whl, unpacked and not installed",
            _fetch_with_debian_wheel,
        ),
    )
    answers = []
    for name, fetch in ways:
        _say(f"setup: fetching uv with {name}")
        shutil.rmtree(TOOLS, ignore_errors=True)
        try:
            fetch(python)
        except (OSError, subprocess.CalledProcessError, SetupError) as error:
            answers.append(f"  {name}: {_answer(error)}")
            continue
        found = find_uv()
        if found:
            return found
        answers.append(f"  {name}: it ended well, but left no uv that starts")
    raise SetupError(
        "uv, which installs the packages, could not be fetched:\n"
        + "\n".join(answers)
        + "\n  Check the network, or put uv on PATH yourself, and type the same command again."
    )


def _fetch_with_venv(python: str) -> None:
    _run([python, "-m", "venv", str(TOOLS)])
    _run([str(TOOLS / "bin" / "python"), "-m", "pip", "install", "uv"])


def _fetch_with_pip(python: str) -> None:
    _run([python, "-m", "pip", "install", "--target", str(TOOLS), "uv"])


def _fetch_with_debian_wheel(python: str) -> None:
    """Pip from a Debian package: pip's wheel runs without being installed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(["apt-get", "download", "python3-pip-whl"], cwd=folder)
        except subprocess.CalledProcessError:
            # The package lists are missing or old (fresh containers): read them into a folder of
            # our own, which needs no rights and leaves the system as it is.
            own = [
                f"-oDir::State::lists={folder}/lists",
                f"-oDir::Cache={folder}/cache",
            ]
            for part in ("lists/partial", "cache/archives/partial"):
                Path(folder, part).mkdir(parents=True)
            _run(["apt-get", *own, "update"], cwd=folder)
            _run(["apt-get", *own, "download", "python3-pip-whl"], cwd=folder)
        (package,) = Path(folder).glob("python3-pip-whl*.deb")
        _run(["dpkg", "-x", str(package), f"{folder}/unpacked"])
        wheels = sorted(Path(folder, "unpacked").rglob("pip-*.whl"))
        if not wheels:
            raise SetupError("the package holds no pip wheel")
        _run([python, f"{wheels[-1]}/pip", "install", "--target", str(TOOLS), "uv"])


def install(uv: list[str], python: str) -> None:
    """Make .venv hold exactly what requirements.lock says; what is right already stays."""
    venv_python = VENV / "bin" / "python"
    if version_of(str(venv_python)) not in SUPPORTED:
        shutil.rmtree(VENV, ignore_errors=True)
        _stream([*uv, "venv", "--quiet", "--python", python, str(VENV)])
    _say("setup: installing the locked packages into .venv (a few minutes the first time)")
    _stream([*uv, "pip", "sync", "--quiet", "--python", str(venv_python), str(LOCK)])


def _run(command: list[str], cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd)


def _stream(command: list[str]) -> None:
    """Run with its output on the user's terminal."""
    # Behind a company's proxy only the system knows whom to trust; a bare machine has no such
    # list, and uv brings its own.
    certificates = {"UV_SYSTEM_CERTS": "true"} if SYSTEM_CERTIFICATES.is_file() else {}
    env = {"UV_PYTHON_DOWNLOADS": "never", **certificates, **os.environ}
    done = subprocess.run(command, check=False, env=env)
    if done.returncode:
        raise SetupError(
            f"uv {command[1]} ended with code {done.returncode}; what it said is above.\n"
            "  Check the network and the free disk space (about 8 GB), then type the same again."
        )


def _answer(error: Exception) -> str:
    """The last line a failed command said, or the error itself."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [*error.stdout.splitlines(), *error.stderr.splitlines()]
        return next(
            (line for line in reversed(lines) if line.strip()),
            f"code {error.returncode}",
        )
    return str(error)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
