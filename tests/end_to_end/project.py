"""A copy of this project to run dvc in."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

RAN = re.compile(r"Running stage '([^']+)'")
IDENTITY = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]


class Project:
    """A copy of this project in a folder and a git repository of its own."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        # Results of this checkout stay behind: the copy makes its own.
        results = ("metrics/", "plots/", "dvc.lock")
        for name in sorted(set(listed.splitlines())):
            if (root / name).is_file() and not name.startswith(results):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name)
        for words in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-qm", "copy"]):
            subprocess.run(["git", *words], cwd=folder, check=True)
        programs = str(Path(sys.executable).parent)
        self.env = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        self.env["PREFECT_HOME"] = str(folder / ".prefect")
        self.env.pop("PREFECT_API_URL", None)

    def __call__(
        self,
        *words: str,
        code: int = 0,
        limit_seconds: float = 900,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Run a command there, with further settings in its environment; what it printed."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env={**self.env, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_seconds,
            check=False,
        )
        assert done.returncode == code, f"{' '.join(words)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def edit(self, before: str, after: str) -> None:
        params = self.folder / "params.yaml"
        text = params.read_text()
        assert text.count(before) == 1, before
        params.write_text(text.replace(before, after))
