"""Section `data` of params.yaml: images in."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from stages.sections.kinds import Count, Fraction, Section, no_doubles

REMOTE_SCHEMES = ("s3", "gs", "http", "https")


def problem_of_address(address: str) -> str | None:
    """Why an address of remote files can't be used, or None."""
    if "::" in address or not re.fullmatch(r"[!-~]+", address):
        return "write one plain address, without :: and spaces"
    parts = urlsplit(address)
    if parts.scheme not in REMOTE_SCHEMES or not parts.netloc:
        return f"write {', '.join(f'{scheme}://' for scheme in REMOTE_SCHEMES)} and a place"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "leave out user names, passwords, ? and #; credentials come from the environment"
    return "leave out .." if ".." in parts.path.split("/") else None


def _check_address(address: str | None) -> str | None:
    problem = None if address is None else problem_of_address(address)
    if problem:
        raise ValueError(problem)
    return address


TorchvisionName = Literal[
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "SVHN",
    "ImageNet",
    "Food101",
    "SUN397",
    "StanfordCars",
    "FGVCAircraft",
    "DTD",
    "OxfordIIITPet",
    "Caltech101",
    "Flowers102",
]


class DataParams(Section):
    """Images in: where from, how split, how sharded."""

    source: Annotated[
        Literal["fashion_mnist", "folder", "labels_csv", "webdataset", "torchvision", "published"],
        Field(
            description="fashion_mnist; folder: a folder per class; labels_csv: a flat folder; "
            "webdataset: .tar shards; torchvision: a data set it knows; published: finished shards "
            "at shards_at"
        ),
    ]
    root: Annotated[
        str | None,
        Field(description="folder of the images; null: downloaded (fashion_mnist, torchvision)"),
    ] = None
    labels_csv: Annotated[
        str | None, Field(description="key,label per line; may name only some of the images")
    ] = None
    shards: Annotated[
        list[str],
        AfterValidator(no_doubles),
        Field(description="webdataset: only these .tar files below root; empty: all"),
    ] = []
    json_label: Annotated[
        str, Field(description="webdataset: what a .json member calls the class")
    ] = "label"
    name: Annotated[TorchvisionName | None, Field(description="torchvision: the data set")] = None
    download: Annotated[
        bool, Field(description="torchvision: fetch the data set where it is not there")
    ] = False
    unlabelled: Annotated[
        list[str],
        AfterValidator(no_doubles),
        Field(description="further folders of images, or of .tar shards, used without labels"),
    ] = []
    image_size: Annotated[int, Field(ge=8, le=1024, description="pixels, height and width")]
    channels: Annotated[Literal[1, 3], Field(description="1: grey, 3: RGB")]
    validation_images: Annotated[
        int, Field(ge=1, description="training images set apart to choose with")
    ]
    test_fraction: Annotated[
        Fraction, Field(description="share set apart to report on, where the source has no test")
    ] = 0.15
    train_limit: Annotated[Count | None, Field(description="use only so many; null: all")] = None
    test_limit: Annotated[Count | None, Field(description="use only so many; null: all")] = None
    images_per_shard: Count = 5000
    max_pixels: Annotated[Count, Field(description="a larger picture is quarantined")] = 100_000_000
    quarantine_tolerance: Annotated[
        Fraction, Field(description="share of images that may fail to decode")
    ] = 0.01
    near_duplicates: Annotated[
        Literal["report", "drop"],
        Field(description="drop: leave near copies of held-out images out of training"),
    ] = "report"
    shards_at: Annotated[
        str | None,
        AfterValidator(_check_address),
        Field(description="s3://, gs:// or http:// folder that holds the shards; null: this disk"),
    ] = None
    shuffle_shards: Annotated[
        Count | None,
        Field(description="images are shuffled over so many shards at a time; null: over all"),
    ] = None
    seed: int = 0

    @model_validator(mode="after")
    def _source_has_its_files(self) -> Self:
        if self.source == "published":
            if self.shards_at is None:
                raise ValueError("source published needs shards_at: where the shards are")
        elif self.source == "torchvision":
            if self.name is None:
                raise ValueError("source torchvision needs name: the data set")
            if self.root is None and not self.download:
                raise ValueError("source torchvision needs root: its folder; or download: true")
        elif self.source != "fashion_mnist" and self.root is None:
            raise ValueError(f"source {self.source} needs root: the folder of the images")
        if self.source == "labels_csv" and self.labels_csv is None:
            raise ValueError("source labels_csv needs labels_csv: a file of key,label lines")
        return self
