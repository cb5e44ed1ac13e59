"""A folder in a bucket of the S3 server that all tests share."""

from typing import Any

import pytest


@pytest.fixture
def bucket(wire: Any) -> str:
    """The address of a folder in a bucket."""
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).mkdir("pictures")
    return "s3://pictures/shards"
