"""Shards in a bucket of Google's, against an emulator; needs gcsfs and gcp-storage-emulator."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.data.build import Wanted, build_shards
from stages.data.cache import ShardsAt
from stages.data.folders import read_class_folders
from stages.data.publish import take_published
from stages.data.remote import Remote
from stages.data.splits import SplitSizes
from stages.data.store import ImageStore
from stages.errors import UserError


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("gcsfs", reason="gs:// is tested where gcsfs is installed")
    pytest.importorskip("gcp_storage_emulator", reason="gs:// is tested against this emulator")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    code = "import sys; from gcp_storage_emulator.__main__ import main; sys.exit(main())"
    with (tmp_path / "emulator.txt").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-c", code, *words], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert server.poll() is None, (tmp_path / "emulator.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        request = urllib.request.Request(
            f"{address}/storage/v1/b?project=test",
            data=json.dumps({"name": "pictures"}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        yield "gs://pictures/shards"
    finally:
        server.kill()
        server.wait()


def test_shards_in_googles_bucket_have_the_bytes_and_pixels_of_those_on_this_disk(
    bucket: str, make_noise_shards: Callable[..., Path], tmp_path: Path
):
    local = make_noise_shards(tmp_path, per_class=24, side=24)
    wanted = Wanted(SplitSizes(4, 0.2), 0, 1, 10_000, 8, 0.0)
    source = read_class_folders(tmp_path / "images")
    remote = Remote(bucket)
    build_shards(source, wanted, tmp_path / "there", tmp_path / "w", workers=1, remote=remote)
    here = {path.name: path.read_bytes() for path in local.iterdir()}
    assert remote.sizes() == {name: len(content) for name, content in here.items()}
    assert all(remote.read(name, 10**7) == content for name, content in here.items())

    take_published(Remote(bucket), tmp_path / "taken")
    options = {"with_labels": True, "channels": 1, "max_pixels": 10_000}
    at = ShardsAt(bucket, tmp_path / "cache", 10**9)
    there = ImageStore.open(tmp_path / "taken", "train", at=at, **options)
    on_disk = ImageStore.open(local, "train", **options)
    everything = np.arange(on_disk.n_images)
    assert torch.equal(there.images(everything), on_disk.images(everything))

    for ask in (lambda at: at.read("index.json", 10), lambda at: at.write("a", b"1")):
        with pytest.raises(UserError, match=r"gs://nobucket/x (has no index|can't be written)"):
            ask(Remote("gs://nobucket/x", (0.1,)))
