"""The images that params.yaml names."""

from pathlib import Path

from stages.data.fashion_mnist import read_fashion_mnist
from stages.data.fetch import fetch_shards
from stages.data.folders import read_class_folders, read_labels_csv
from stages.data.remote import Remote
from stages.data.sources import Source
from stages.data.torchvision_source import read_torchvision
from stages.data.unlabelled import add_unlabelled
from stages.data.webdataset_source import read_webdataset
from stages.errors import UserError
from stages.sections.data import DataParams

RAW = Path("data/raw")  # what is downloaded is kept there


def read_source(params: DataParams) -> Source:
    """The source that `data` names, with its further folders of unlabelled images.

    Raises:
        UserError: it can't be used; the message says why.
    """
    further = [Path(folder) for folder in params.unlabelled]
    source = _read_labelled(params, further)
    return add_unlabelled(source, further) if further else source


def _read_labelled(params: DataParams, without: list[Path]) -> Source:
    root = Path(params.root) if params.root is not None else None
    if params.source == "fashion_mnist":
        return read_fashion_mnist(root, RAW / "fashion_mnist")
    if params.source == "torchvision":
        assert params.name is not None  # DataParams has checked it
        place = root or (RAW / "torchvision").absolute()  # as another machine's worker sees it
        return read_torchvision(params.name, place, download=params.download)
    assert root is not None  # DataParams has checked it
    if "://" in str(params.root):
        return _read_shards_at(str(params.root), params)
    if params.source == "folder":
        return read_class_folders(root, without)
    if params.source == "webdataset":
        return read_webdataset(root, params.shards, params.json_label)
    return read_labels_csv(root, Path(str(params.labels_csv)), without)


def _read_shards_at(address: str, params: DataParams) -> Source:
    if params.source != "webdataset":
        raise UserError(
            f"params.yaml, data.root: {address} is no folder of this disk, and only source "
            "webdataset reads .tar files from an address.\n"
            "  Copy the pictures here, or pack them into .tar shards there."
        )
    folder = fetch_shards(Remote(address), params.shards, RAW / "webdataset")
    return read_webdataset(folder, params.shards, params.json_label)
