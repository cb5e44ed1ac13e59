"""JPEG files decoded on the GPU that trains, many in one call (nvJPEG, through torchvision).

For a machine whose processor is too slow for its GPU. The pixels are not those of libjpeg: colour
is brought to full size otherwise, which shows at coloured edges, so that this is part of what a
network learns from, and never chosen by itself. torchvision 0.29 still has the decoder, and says
that it will move to torchcodec.

Shapes: B images, C H W.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stages.data.on_device import to_device
from stages.data.order import Order
from stages.data.store import ImageStore
from stages.errors import UserError


@dataclass(frozen=True)
class GpuDecoder:
    """A store's images on a device: plain JPEG files decoded there, all others on the CPU."""

    store: ImageStore
    channels: int
    device: torch.device

    def __post_init__(self) -> None:
        """Try it once.

        Raises:
            UserError: this torchvision, or this GPU, does not decode.
        """
        file = io.BytesIO()
        Image.new("L", (16, 16)).save(file, "JPEG")
        try:
            self._decode([file.getvalue()])
        except RuntimeError as error:
            raise UserError(
                f"params.yaml asks for pretrain.decode_on: gpu, and that fails on {self.device}: "
                f"{str(error).partition(chr(10))[0]}\n  Write cpu, or install a torchvision with "
                "nvJPEG."
            ) from error

    @property
    def key_hashes(self) -> NDArray[np.uint64]:
        return self.store.key_hashes

    @property
    def n_images(self) -> int:
        return self.store.n_images

    def class_tensor(self, positions_B: NDArray[np.int64]) -> Tensor | None:
        return self.store.class_tensor(positions_B)

    def order(self, seed: int) -> Order:
        return self.store.order(seed)

    def read_ahead(self, shards: Iterable[int]) -> None:
        self.store.read_ahead(shards)

    def images(self, positions_B: NDArray[np.int64]) -> Tensor | list[Tensor]:
        """As `ImageStore.images`, on the device.

        Raises:
            UserError: an image does not decode on the CPU either.
        """
        files = self.store.plain_jpegs(positions_B)
        places = [place for place, data in enumerate(files) if data is not None]
        try:
            decoded = self._decode([data for data in files if data is not None])
        except torch.OutOfMemoryError:  # a RuntimeError, too, and of no file
            raise
        except RuntimeError:  # it names no file: libjpeg decides about all of them
            places, decoded = [], []
        there = dict(zip(places, decoded, strict=True))
        others = [place for place in range(len(files)) if place not in there]
        if others:
            images = to_device(self.store.images(positions_B[others]), self.device)
            there.update(zip(others, images, strict=True))
        found = [there[place] for place in range(len(files))]
        return torch.stack(found) if len({image.shape for image in found}) == 1 else found

    def _decode(self, files: list[bytes]) -> list[Tensor]:
        """Each uint8 (C, H_i, W_i)."""
        if not files:
            return []
        from torchvision.io import (
            ImageReadMode,
            decode_jpeg,
        )  # takes a second, which others need not wait

        data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        mode = ImageReadMode.GRAY if self.channels == 1 else ImageReadMode.RGB
        decoded = cast("list[Tensor]", decode_jpeg(data, mode, self.device))  # a list for a list
        if self.device.type == "cuda":
            # Made on a stream of the decoder's own; not to be overwritten before ours has read it.
            for image in decoded:
                image.record_stream(torch.cuda.current_stream(self.device))
        return decoded
