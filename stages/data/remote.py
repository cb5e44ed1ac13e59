"""Files at an address (s3://, gs://, http://), read and written through fsspec, with patience.

What comes is bytes and nothing else: fsspec's chained addresses (`simplecache::`, `zip::`
and the like) are refused, and a file is read in parts of known size, so that neither memory nor
disk can be filled by who answers. A part that fails is asked for again, after waits that double.
A name here is a plain file name in the folder that the address names.
"""

import errno
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from stages.errors import Interrupted, UserError
from stages.sections.data import problem_of_address

PART_BYTES = 8 * 2**20
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between tries

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_OF_THE_NETWORK = {"aiohttp", "aiobotocore", "botocore", "fsspec", "gcsfs", "google", "s3fs"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
_SENSELESS = {"ParamValidationError", "InvalidURL", "NonHttpUrlClientError"}

Result = TypeVar("Result")


class Remote:
    """A folder at an address.

    Attributes:
        address: without a slash at its end.
        waits: seconds between tries; one try more than there are waits.
    """

    def __init__(self, address: str, waits: tuple[float, ...] = WAITS) -> None:
        """Nothing is asked of the network yet.

        Raises:
            UserError: no address that can be used, or a package that it needs is missing.
        """
        problem = problem_of_address(address)
        if problem:
            raise UserError(
                f"the address {address!r} can't be used: {problem}.\n"
                "  Mend data.root or data.shards_at in params.yaml."
            )
        self.address = address.rstrip("/")
        self.waits = waits
        self._files = _file_system(self.address)

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.address, self.waits)  # to worker processes, which connect anew

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when it is not there.

        Raises:
            UserError: no permission. Interrupted: the network failed. So all methods below.
        """
        try:
            found = self._patiently("read", name, lambda at: self._files.info(at)["size"])
        except _MissingError:
            return None
        return None if found is None else int(found)

    def read(self, name: str, most_bytes: int) -> bytes:
        """A small file.

        Raises:
            UserError: not there, or larger than that.
        """
        n_bytes = self.size(name)
        if n_bytes is None:
            raise UserError(
                f"{self.address} has no {name}.\n  Check data.shards_at in params.yaml; an index "
                "is written last, so shards that are still being put there have none."
            )
        if n_bytes > most_bytes:
            raise UserError(f"{self.address}/{name} has {n_bytes} bytes, too many to be one.")
        return b"".join(self.parts(name, n_bytes))

    def parts(self, name: str, n_bytes: int, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file of known size, from `start` on.

        Raises:
            UserError: not there, or of another size.
        """
        while start < n_bytes:
            stop = min(start + PART_BYTES, n_bytes)
            try:
                part = self._patiently("read", name, self._reader(start, stop))
            except _MissingError:
                raise self._not_there(name) from None
            except _TooShortError:
                part = b""
            if len(part) == n_bytes != stop - start:
                part = part[start:]  # a server that gives no parts gave the whole
            if not part or start + len(part) > n_bytes:
                raise UserError(
                    f"{self.address}/{name} is not of the size that the index names: {len(part)} "
                    f"bytes came for bytes {start} to {stop} of {n_bytes}.\n"
                    "  Put the shards there again."
                )
            yield part
            start += len(part)

    def download(self, name: str, n_bytes: int, sha256: str, partial: Path) -> None:
        """A file to `partial`, going on where an earlier try stopped; whole and right, or an error.

        Raises:
            UserError: not there, or not what the index says.
        """
        if self._download(name, n_bytes, sha256, partial):
            return
        os.truncate(partial, 0)  # perhaps it was the part of an earlier try that was damaged
        if not self._download(name, n_bytes, sha256, partial):
            os.truncate(partial, 0)
            raise UserError(
                f"{self.address}/{name} is not what the index says: its SHA-256 is not "
                f"{sha256[:16]}...\n  It changed after the index was written, or on the way. Run "
                "the stage shard again where the shards are made."
            )

    def _download(self, name: str, n_bytes: int, sha256: str, partial: Path) -> bool:
        with partial.open("a+b") as file:
            if file.tell() > n_bytes:
                file.truncate(0)
            file.seek(0)
            found = hashlib.file_digest(file, "sha256")
            for part in self.parts(name, n_bytes, file.tell()):
                file.write(part)
                file.flush()
                found.update(part)
        return found.hexdigest() == sha256

    def sizes(self) -> dict[str, int]:
        """Name and bytes of every file; none where the folder is not there."""
        return {name: int(entry["size"] or 0) for name, entry in self._listed().items()}

    def marks(self, names: Sequence[str] = ()) -> dict[str, str]:
        """What changes with the content of a file: its bytes, and the server's own mark for it.

        Args:
            names: of files; none: every file. One that is not there is left out.
        """
        if not names:
            return {name: _mark(entry) for name, entry in self._listed().items()}
        found = {}
        for name in names:
            with suppress(_MissingError):
                found[name] = _mark(self._patiently("read", name, self._files.info))
        return found

    def _listed(self) -> dict[str, dict[str, Any]]:
        try:
            listed = self._patiently("list", "", lambda at: self._files.ls(at, detail=True))
        except _MissingError:
            return {}
        files = (entry for entry in listed if entry["type"] == "file")
        return {str(entry["name"]).rpartition("/")[2]: entry for entry in files}

    def upload(self, path: Path, name: str) -> None:
        """A file of this machine; seen there only when it is whole."""
        self._write(name, lambda at: self._files.put_file(str(path), at))

    def write(self, name: str, data: bytes) -> None:
        """A small file; seen there only when it is whole."""
        self._write(name, lambda at: self._files.pipe_file(at, data))

    def _write(self, name: str, write: Callable[[str], None]) -> None:
        if self.address.startswith("http"):
            raise UserError(
                f"{self.address} can only be read.\n  Write to s3:// or gs://, or put the folder "
                "data/shards there yourself."
            )
        try:
            self._patiently("write", name, write)
        except _MissingError:
            raise UserError(
                f"{self.address} can't be written: its bucket is not there.\n"
                "  Make the bucket, or mend data.shards_at in params.yaml."
            ) from None

    def _reader(self, start: int, stop: int) -> Callable[[str], bytes]:
        return lambda at: self._files.cat_file(at, start=start, end=stop)

    def _patiently(self, what: str, name: str, call: Callable[[str], Result]) -> Result:
        """The call's result, tried again while the network fails."""
        at = f"{self.address}/{name}" if name else self.address
        begun = time.monotonic()
        for wait in (*self.waits, None):
            try:
                return call(at)
            except Exception as error:  # each backend has classes of its own; see _kind_of
                kind = _kind_of(error)
                if kind is None:
                    raise
                if kind == "missing":
                    raise _MissingError from error
                if kind == "too short":
                    raise _TooShortError from error
                if kind == "forbidden":
                    raise self._forbidden(what, at, error) from error
                if kind == "senseless":
                    raise UserError(
                        f"can't {what} {at}: {_said(error)}\n  Mend the address in params.yaml."
                    ) from error
                if wait is None:
                    seconds = time.monotonic() - begun
                    raise Interrupted(
                        f"{at} can't be reached ({_said(error)}), tried {len(self.waits) + 1} "
                        f"times in {seconds:.0f} seconds.\n  What was done so far is kept: the "
                        "same command continues there when the network is back."
                    ) from error
            time.sleep(wait * random.uniform(0.5, 1.0))  # many workers do not knock at once
        raise AssertionError("the last try returns or raises")

    def _forbidden(self, what: str, at: str, error: Exception) -> UserError:
        return UserError(
            f"no permission to {what} {at} ({_said(error)}).\n"
            "  Check the credentials in the environment (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY; for gs:// GOOGLE_APPLICATION_CREDENTIALS) and what they may do."
        )

    def _not_there(self, name: str) -> UserError:
        return UserError(
            f"{self.address} lacks {name}, which the index names.\n"
            "  Put the shards there again, or mend data.shards_at in params.yaml."
        )


class _MissingError(Exception):
    """Nothing is at the address."""


class _TooShortError(Exception):
    """What is at the address ends before the part that was asked for."""


def _file_system(address: str) -> Any:
    import fsspec  # half a second that local shards need not pay

    # Of connections that broke under a request whose failure is told already.
    logging.getLogger("asyncio").addFilter(_is_news)
    scheme = urlsplit(address).scheme
    options: dict[str, Any] = {}
    if scheme == "s3":  # trying again is ours, so that the message can say what was tried
        options["config_kwargs"] = {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 1},
        }
    elif scheme == "gs":  # which tries six times itself, and logs a traceback each time it gives up
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    elif scheme.startswith("http"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
        options["client_kwargs"] = {"timeout": timeout}
    try:
        files = fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme, "aiohttp")
        raise UserError(
            f"{address} needs the package {package}, which is not installed ({error}).\n"
            f"  Install it into .venv: uv pip install --python .venv/bin/python {package}"
        ) from error
    if scheme == "s3":
        files.retries = 1
    return files


def _is_news(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def _kind_of(error: Exception) -> str | None:
    """missing, too short, forbidden, senseless, network; None for what is a fault of ours."""
    status = getattr(error, "status", None)  # of aiohttp's answers
    if isinstance(error, FileNotFoundError) or status in {404, 410}:
        return "missing"
    if status == 416 or "range is not satisfiable" in str(error):
        return "too short"
    if isinstance(error, PermissionError) or status in {401, 403}:
        return "forbidden"
    if type(error).__name__ in _NO_CREDENTIALS:
        return "forbidden"
    if getattr(error, "errno", None) == errno.EINVAL or type(error).__name__ in _SENSELESS:
        return "senseless"
    module = type(error).__module__.partition(".")[0]
    return "network" if isinstance(error, OSError) or module in _OF_THE_NETWORK else None


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _mark(entry: Mapping[str, Any]) -> str:
    """A server that names neither digest nor time is known by the bytes alone."""
    given = (entry.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime"))
    return f"{entry.get('size')} {next((str(mark) for mark in given if mark), '')}"
