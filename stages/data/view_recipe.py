"""What a random view is: the recipe that `views.make_views` draws from."""

from dataclasses import dataclass
from typing import Literal

from stages.data import blur, colour, resize


@dataclass(frozen=True)
class ViewRecipe:
    """What a random view is. Strengths are already multiplied by the paper's s.

    Brightness, contrast and saturation factors are uniform in [max(0, 1 - strength),
    1 + strength] (brightness "v1": an addend in [-strength, strength]), hue in turns in
    [-strength, strength]. A strength of 0 leaves its operation out.
    """

    size: int
    crop_sampler: Literal["official", "torchvision"] = "official"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    resize_kernel: resize.Kernel = "bicubic_tf2"
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    brightness_kind: colour.BrightnessKind = "v2"
    colour_convention: colour.Convention = "official"
    random_order: bool = True
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_border: blur.Border = "zero"

    @classmethod
    def official(
        cls,
        size: int,
        strength: float = 1.0,
        blur: bool | None = None,
        brightness_kind: colour.BrightnessKind = "v2",
        crop_area: tuple[float, float] = (0.08, 1.0),
    ) -> "ViewRecipe":
        """SimCLRv2's own views. Strength is 1 on ImageNet and 0.5 on CIFAR-10.

        Blur is for images larger than 32 pixels unless it is given.
        """
        return cls(
            size,
            crop_area=crop_area,
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            brightness_kind=brightness_kind,
            blur_probability=0.5 if _has_blur(size, blur) else 0.0,
        )

    @classmethod
    def torchvision(
        cls,
        size: int,
        strength: float = 1.0,
        blur: bool | None = None,
        resize_kernel: resize.Kernel = "bilinear_antialias",
        crop_area: tuple[float, float] = (0.08, 1.0),
    ) -> "ViewRecipe":
        """The same recipe as PyTorch projects write it, in torchvision's float arithmetic."""
        return cls(
            size,
            crop_sampler="torchvision",
            crop_area=crop_area,
            resize_kernel=resize_kernel,
            brightness=0.8 * strength,
            contrast=0.8 * strength,
            saturation=0.8 * strength,
            hue=0.2 * strength,
            colour_convention="torchvision",
            blur_probability=0.5 if _has_blur(size, blur) else 0.0,
            blur_border="reflect",
        )

    @classmethod
    def crop_and_flip(
        cls,
        size: int,
        convention: Literal["official", "torchvision"] = "official",
        crop_area: tuple[float, float] = (0.08, 1.0),
        flip_probability: float = 0.5,
    ) -> "ViewRecipe":
        """What fine-tuning and linear evaluation train on (SimCLR, appendix B.5)."""
        return cls(
            size,
            crop_sampler=convention,
            crop_area=crop_area,
            resize_kernel="bicubic_tf2" if convention == "official" else "bilinear_antialias",
            flip_probability=flip_probability,
            jitter_probability=0.0,
            grayscale_probability=0.0,
            blur_probability=0.0,
        )


def _has_blur(size: int, asked: bool | None) -> bool:
    return size > 32 if asked is None else asked
