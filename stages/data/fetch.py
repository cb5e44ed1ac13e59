"""Someone's shards from an address to this disk, where the reader of WebDataset shards finds them.

There is no index to check them against: a file is taken when it has the size that the address
tells, and a tar that is cut short or damaged is refused when it is read.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from stages.data.remote import Remote
from stages.errors import UserError


def fetch_shards(remote: Remote, names: Sequence[str], below: Path) -> Path:
    """The folder of this disk that holds the .tar files of an address, and no others.

    What an earlier run fetched is kept, also half a file.

    Args:
        remote: where they are.
        names: only these files; empty: all that the address lists.
        below: each address has a folder of its own in it.

    Raises:
        UserError: no .tar file there, one that is missing, or no permission.
        Interrupted: the network failed.
    """
    sizes = _sizes(remote, names)
    folder = below / hashlib.sha256(remote.address.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name.removesuffix(".partial") not in sizes:
            old.unlink()
    for name, n_bytes in sorted(sizes.items()):
        path = folder / name
        if path.exists() and path.stat().st_size == n_bytes:
            continue
        partial = path.with_name(f"{name}.partial")
        with partial.open("ab") as file:
            if file.tell() > n_bytes:
                file.truncate(0)
                file.seek(0)
            for part in remote.parts(name, n_bytes, file.tell()):
                file.write(part)
                file.flush()
        partial.replace(path)
    return folder


def _sizes(remote: Remote, names: Sequence[str]) -> dict[str, int]:
    found = {name: remote.size(name) for name in names} if names else remote.sizes()
    missing = [name for name, n_bytes in found.items() if n_bytes is None]
    if missing:
        raise UserError(
            f"{remote.address} has no {missing[0]}, which data.shards names ({len(missing)} are "
            "missing).\n  Mend data.shards or data.root in params.yaml."
        )
    sizes = {
        name: n_bytes
        for name, n_bytes in found.items()
        if n_bytes is not None and name.endswith(".tar") and Path(name).name == name
    }
    if not sizes:
        raise UserError(
            f"{remote.address} lists no .tar file.\n  Check data.root in params.yaml; where the "
            "server lists nothing (http://), name the files in data.shards."
        )
    return sizes
