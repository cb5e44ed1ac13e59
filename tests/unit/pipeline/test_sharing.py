"""Results on their way to a remote: what arrives, what a broken line costs, what is said."""

import hashlib
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.logging import disable_run_logger

from pipeline.dvc import Workspace
from pipeline.sharing import PushFailed, push_results, remote_for
from stages.errors import INTERRUPTED, UserError

N_FILES = 24


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words, "--quiet"], check=True)


def cached() -> dict[str, str]:
    """Digests of the local copy, by path in dvc's cache."""
    files = (path for path in Path(".dvc/cache").rglob("*") if path.is_file())
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def product(checkout: Path) -> Path:
    """A folder of some files that dvc keeps."""
    rng = np.random.default_rng(0)
    folder = checkout / "weights"
    folder.mkdir()
    for number in range(N_FILES):
        (folder / f"{number}.bin").write_bytes(rng.bytes(2000))
    dvc("add", "weights")
    return folder


def test_a_bucket_gets_the_rest_when_the_line_is_mended_and_the_local_copy_stays(
    product: Path, wire: Any
):
    import s3fs

    s3fs.S3FileSystem().mkdir("results")
    dvc("remote", "add", "--default", "storage", "s3://results/simclr")
    before = cached()
    assert len(before) == N_FILES + 1
    wire.left = 4000  # breaks in the middle of it
    with disable_run_logger(), pytest.raises(PushFailed) as failed:
        push_results.fn(Path.cwd(), ["weights.dvc"], "storage")
    assert cached() == before
    said = str(failed.value)
    assert "the results are whole on this machine, but did not all reach the remote storage" in said
    assert "so does: dvc push" in said
    assert failed.value.exit_code == INTERRUPTED

    wire.mend()
    with disable_run_logger():
        assert push_results.fn(Path.cwd(), ["weights.dvc"], "storage").endswith("pushed")
    assert cached() == before
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(product)
    dvc("pull", "weights.dvc")
    assert cached() == before
    assert len(list(product.iterdir())) == N_FILES


def test_results_go_to_the_default_remote_where_there_is_one(checkout: Path):
    workspace = Workspace(checkout)
    assert remote_for(workspace, "auto") is None
    with pytest.raises(UserError, match=r"no default remote(.|\n)*dvc remote add --default"):
        remote_for(workspace, "always")
    dvc("remote", "add", "--default", "storage", str(checkout / "storage"))
    assert remote_for(workspace, "auto") == remote_for(workspace, "always") == "storage"
    assert remote_for(workspace, "never") is None


def test_a_second_push_has_nothing_to_send(product: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    dvc("remote", "add", "--default", "storage", "../storage")
    with disable_run_logger():
        said = [push_results.fn(Path.cwd(), ["weights.dvc"], "storage") for _ in range(2)]
    assert said == [f"{N_FILES + 1} files pushed", "Everything is up to date."]
