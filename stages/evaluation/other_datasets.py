"""Labelled data sets for the transfer stage that need no network.

Shapes: N images, C H W.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class NotHere(Exception):
    """A data set that is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class LabelledImages:
    """Grey images with a class each.

    Attributes:
        images: uint8 tensors (1, H, W).
        classes_N: class numbers.
        class_names: by class number.
    """

    images: Sequence[Tensor]
    classes_N: Tensor
    class_names: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def as_channels(self, channels: int) -> list[Tensor]:
        """The images with 1 or 3 equal channels."""
        return [image.expand(channels, -1, -1) for image in self.images]


def read_digits() -> LabelledImages:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels."""
    from sklearn.datasets import load_digits  # heavy, and only this stage needs it

    bunch = load_digits()
    pixels_NHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return LabelledImages(
        [torch.from_numpy(image)[None] for image in pixels_NHW],
        torch.from_numpy(bunch.target.astype(np.int64)),
        tuple(str(name) for name in bunch.target_names),
    )


def read_elpv() -> LabelledImages:
    """2,624 photographs of solar cells, sound or defective (elpv-dataset, CC BY-NC-SA 4.0).

    The four levels of defect probability become two classes at one half, as in the data set's
    own evaluation (Deitsch et al. 2019).
    """
    try:
        from elpv_dataset.utils import load_dataset  # ty: ignore[import-not-found]
    except ImportError:
        raise NotHere("install it into the environment: pip install elpv-dataset") from None
    images, probability, _kinds = load_dataset()
    return LabelledImages(
        [torch.from_numpy(np.ascontiguousarray(image))[None] for image in images],
        torch.from_numpy((np.asarray(probability) >= 0.5).astype(np.int64)),
        ("sound", "defective"),
    )
