"""What tests of several parts need: small real shards, and a wire to a bucket that can be cut."""

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from stages.data.build import Wanted, build_shards
from stages.data.folders import read_class_folders
from stages.data.images import encode_png
from stages.data.splits import SplitSizes


@pytest.fixture(scope="session")
def make_noise_shards() -> Callable[..., Path]:
    """Makes shards of two classes of grey noise; called with a folder, it returns theirs."""

    def make(
        folder: Path,
        *,
        per_class: int,
        side: int,
        validation_images: int = 4,
        images_per_shard: int = 8,
    ) -> Path:
        rng = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (folder / "images" / name).mkdir(parents=True)
            for number in range(per_class):
                pixels_HW = rng.integers(0, 256, (side, side), dtype=np.uint8)
                (folder / "images" / name / f"{number}.png").write_bytes(encode_png(pixels_HW))
        wanted = Wanted(SplitSizes(validation_images, 0.2), 0, 1, 10_000, images_per_shard, 0.0)
        source = read_class_folders(folder / "images")
        build_shards(source, wanted, folder / "shards", folder / "work", workers=1)
        return folder / "shards"

    return make


class Wire:
    """Passes bytes on to a server, and counts what comes back, until it is cut.

    Attributes:
        address: to use in place of the server's.
        passed: bytes that came back.
        left: bytes that may still come back before the wire breaks; None: any number.
    """

    def __init__(self, server: str) -> None:
        self.target = (urlsplit(server).hostname, urlsplit(server).port)
        self.passed = 0
        self.left: int | None = None
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self._break()

    def mend(self) -> None:
        self.left = None

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.left is not None and self.left <= 0:
                    client.close()
                    continue
                server = socket.create_connection(self.target)
                with self._lock:
                    self._open += [client, server]
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, here: socket.socket, there: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := here.recv(65536):
                if counted:
                    with self._lock:
                        if self.left is not None:
                            data = data[: max(self.left, 0)]
                            self.left -= len(data)
                        self.passed += len(data)
                there.sendall(data)
                if counted and self.left is not None and self.left <= 0:
                    self._break()
        for end in (here, there):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _break(self) -> None:
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._open.clear()


@pytest.fixture
def wire(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The wire that s3:// goes through; the server is empty."""
    s3fs = pytest.importorskip("s3fs")
    request = urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")
    urllib.request.urlopen(request).close()
    wire = Wire(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()  # they keep the address they were made with
    yield wire
    s3fs.S3FileSystem.clear_instance_cache()
    wire.close()
