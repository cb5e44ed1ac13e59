"""Opening the images of a split, as params.yaml says where they are."""

from pathlib import Path

from stages.data.cache import ShardsAt
from stages.data.store import ImageStore
from stages.params import Params

SHARDS = Path("data/shards")


def open_images(
    params: Params, split: str, *, with_labels: bool, keys: list[str] | None = None
) -> ImageStore:
    """A split of the shards; `keys` names a part of it.

    Raises:
        UserError: no shards, or not what their index says.
    """
    data, runtime = params.data, params.runtime
    at = None
    if data.shards_at is not None:
        n_bytes = round(runtime.cache_gigabytes * 1e9)
        at = ShardsAt(data.shards_at, Path(runtime.cache_folder), n_bytes)
    return ImageStore.open(
        SHARDS,
        split,
        with_labels=with_labels,
        keys=keys,
        channels=data.channels,
        max_pixels=data.max_pixels,
        at=at,
        shuffle_shards=data.shuffle_shards,
    )
