"""What every text file of the project keeps to."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = {".png", ".npz", ".npy", ".jpg", ".safetensors", ".gif", ".webp"}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work|opt|mnt)/\w")


def project_files() -> list[Path]:
    """Files in git, and those that would be with the next `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [file for name in sorted(set(listed.splitlines())) if (file := ROOT / name).is_file()]


def is_text(file: Path) -> bool:
    return file.suffix not in BINARY and b"\0" not in file.read_bytes()[:4096]


def test_no_file_names_a_path_of_somebodys_machine():
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for file in project_files()
        if is_text(file) and file.name != Path(__file__).name
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_no_file_is_large():
    large = [str(file) for file in project_files() if file.stat().st_size > 500_000]
    assert [name for name in large if "golden/data" not in name] == []


def test_file_tree_in_the_readme_names_what_is_there():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    lines = readme.read_text(encoding="utf-8").splitlines()
    named = {
        found[1]
        for line in lines
        if (found := re.match(r" *((?:stages|pipeline|tests)/[\w./-]+) {2,}\S", line))
    }
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
