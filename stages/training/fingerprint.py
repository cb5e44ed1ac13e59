"""What decides a result, in one digest: params, inputs, and the code that is loaded."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def fingerprint(**decides: Any) -> str:
    """SHA-256 over everything that decides a result, and over the loaded code of `stages`.

    Args:
        decides: JSON-able values by name: params, data fingerprint, digests of products, seed.
    """
    text = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.sha256(f"{text}\n{code_digest()}".encode()).hexdigest()


def code_digest() -> str:
    """Digest of the source of every loaded module of `stages`, by name."""
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and (name == "stages" or name.startswith("stages.")):
            digest.update(name.encode() + b"\0" + Path(file).read_bytes() + b"\0")
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names whose values differ, for a message that says why a state is not continued."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
