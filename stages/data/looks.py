"""What a picture looks like in 256 bytes, for finding near copies. Shapes: H W C."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16


def look_of(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Luma, averaged over 16 x 16 fields."""
    squeezed = pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC
    small = Image.fromarray(squeezed).resize((SIDE, SIDE), Image.Resampling.BOX)
    return small.convert("L").tobytes()
