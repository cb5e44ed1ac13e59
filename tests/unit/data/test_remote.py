import functools
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.data.cache import ShardsAt
from stages.data.publish import take_published
from stages.data.remote import Remote
from stages.data.store import ImageStore
from stages.errors import Interrupted, UserError
from stages.sections.data import problem_of_address


@pytest.fixture(scope="module")
def shards(
    tmp_path_factory: pytest.TempPathFactory, make_noise_shards: Callable[..., Path]
) -> Path:
    return make_noise_shards(tmp_path_factory.mktemp("data"), per_class=20, side=8)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder; knows nothing of parts (Range)."""

    def log_message(self, *_: object) -> None:
        pass


class Moody(BaseHTTPRequestHandler):
    """Answers with the status that is asked for in the path; the first two times, or always."""

    seen: dict[str, int]

    def do_GET(self) -> None:
        status, times = map(int, self.path.strip("/").split("/")[0].split("x"))
        self.seen[self.path] = self.seen.get(self.path, 0) + 1
        good = self.seen[self.path] > times
        self.send_response(200 if good else status)
        self.send_header("Content-Length", "4" if good else "0")
        self.end_headers()
        self.wfile.write(b"good" if good else b"")

    def log_message(self, *_: object) -> None:
        pass


def serving(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def http(shards: Path) -> Iterator[str]:
    yield from serving(functools.partial(Quiet, directory=str(shards.parent)))


@pytest.fixture
def moody() -> Iterator[str]:
    Moody.seen = {}
    yield from serving(Moody)


def test_images_come_over_http_from_a_server_that_knows_no_parts(
    shards: Path, http: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stages.data.remote.PART_BYTES", 3000)
    take_published(Remote(f"{http}/shards"), tmp_path / "here")
    options: dict[str, Any] = {"with_labels": True, "channels": 1, "max_pixels": 999}
    at = ShardsAt(f"{http}/shards", tmp_path / "cache", 10**8)
    there = ImageStore.open(tmp_path / "here", "train", at=at, **options)
    here = ImageStore.open(shards, "train", **options)
    everything = np.arange(here.n_images)
    assert torch.equal(there.images(everything), here.images(everything))


def test_http_can_only_be_read(http: str):
    with pytest.raises(UserError, match=r"can only be read.\n.*data/shards there yourself"):
        Remote(f"{http}/shards", ()).write("index.json", b"{}")


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_that_recovers_is_asked_again(moody: str, status: int):
    parts = Remote(f"{moody}/{status}x2", (0.01, 0.01)).parts("x", 4)
    assert b"".join(parts) == b"good"


def test_a_server_that_does_not_recover_is_an_interruption(moody: str):
    with pytest.raises(Interrupted, match=r"503.*tried 3 times.*\n.*the same command continues"):
        list(Remote(f"{moody}/503x9", (0.01, 0.01)).parts("x", 4))


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_forbids_is_not_asked_again(moody: str, status: int):
    with pytest.raises(UserError, match="no permission to read"):
        list(Remote(f"{moody}/{status}x9").parts("x", 4))
    assert Moody.seen == {f"/{status}x9/x": 1}


def test_a_server_that_gives_more_than_a_file_has_is_refused(moody: str):
    with pytest.raises(UserError, match="not of the size that the index names: 4 bytes came"):
        list(Remote(f"{moody}/500x0").parts("x", 3))


def test_nobody_at_the_address_is_an_interruption():
    with pytest.raises(Interrupted, match=r"127.0.0.1:9/x/index.json can't be reached"):
        list(Remote("http://127.0.0.1:9/x", (0.01,)).parts("index.json", 4))


@pytest.mark.parametrize(
    "address",
    [
        *("data/shards", "file:///etc", "ftp://host/x", "s3:bucket", "s3://", "", "pipe:cat x"),
        *("simplecache::s3://bucket/x", "zip://a::http://host/x", "http://me:secret@host/x"),
        *("http://host/x?token=1", "s3://bucket/../other", "s3://bucket/a b", "s3://bucket/ä"),
    ],
)
def test_an_address_that_hides_something_is_refused(address: str):
    assert problem_of_address(address)
    with pytest.raises(UserError, match="can't be used"):
        Remote(address)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"needs the package gcsfs.*\n.*pip install"):
        Remote("gs://bucket/x")
