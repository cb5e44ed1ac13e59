"""Features standardised and turned into their principal axes, as a solver likes them.

Along its axes the covariance is diagonal, so that a diagonal preconditioner is as good as a whole
matrix; and where there are fewer images than features, no more axes than images are left. Both
leave a regression with an L2 penalty the same problem: its weights lie in the span of the inputs,
and a rotation keeps their length.

Shapes: N images, C a chunk of them, D width of the features, R axes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 4096  # images at a time, so that nothing beside the rotated features grows with N
_SMALLEST_SCALE = 1e-6
_FLAT = 1e-12  # of the largest variance: an axis below has none but that of rounding


@dataclass(frozen=True)
class PrincipalAxes:
    """A shift, a scale and a rotation, measured on some features.

    Attributes:
        mean_D: of the features.
        scale_D: their standard deviation, at least 1e-6.
        axes_DR: orthonormal columns.
        variance_R: of the standardised features along each axis.
    """

    mean_D: Tensor
    scale_D: Tensor
    axes_DR: Tensor
    variance_R: Tensor

    @classmethod
    def of(cls, features_ND: Tensor, device: torch.device) -> "PrincipalAxes":
        """Measure features, chunk by chunk; sums and axes are float64 until the end."""
        n_images, width = features_ND.shape
        mean_D = torch.zeros(width, dtype=torch.float64, device=device)
        for chunk_CD in features_ND.split(CHUNK):
            mean_D += chunk_CD.to(device).sum(dim=0, dtype=torch.float64) / n_images
        square_D = torch.zeros_like(mean_D)
        for chunk_CD in features_ND.split(CHUNK):
            centred_CD = chunk_CD.to(device).double() - mean_D
            square_D += centred_CD.square_().sum(dim=0) / n_images
        mean_D, scale_D = mean_D.float(), square_D.sqrt().float().clamp(min=_SMALLEST_SCALE)
        measure = _axes_of_images if n_images < width else _axes_of_features
        variance_R, axes_DR = measure(features_ND, mean_D, scale_D)
        return cls(mean_D, scale_D, axes_DR, variance_R)

    def rotate(self, features_ND: Tensor) -> Tensor:
        """Standardised features along the axes, (N, R) float32 on the axes' device."""
        device = self.axes_DR.device
        rotated_NR = torch.empty(len(features_ND), self.axes_DR.shape[1], device=device)
        for chunk_CD, into_CR in zip(
            features_ND.split(CHUNK), rotated_NR.split(CHUNK), strict=True
        ):
            inputs_CD = (chunk_CD.to(device) - self.mean_D) / self.scale_D
            torch.mm(inputs_CD, self.axes_DR, out=into_CR)
        return rotated_NR


def _axes_of_features(
    features_ND: Tensor, mean_D: Tensor, scale_D: Tensor
) -> tuple[Tensor, Tensor]:
    """Eigenvectors of the covariance (D, D): all D axes."""
    n_images, width = features_ND.shape
    covariance_DD = torch.zeros(width, width, dtype=torch.float64, device=mean_D.device)
    for chunk_CD in features_ND.split(CHUNK):
        inputs_CD = (chunk_CD.to(mean_D.device) - mean_D) / scale_D
        covariance_DD += inputs_CD.T @ inputs_CD / n_images
    variance_D, axes_DD = torch.linalg.eigh(covariance_DD)
    return variance_D.clamp(min=0).float(), axes_DD.float()


def _axes_of_images(features_ND: Tensor, mean_D: Tensor, scale_D: Tensor) -> tuple[Tensor, Tensor]:
    """The same axes from the inner products (N, N) of few images; those without variance go."""
    n_images = len(features_ND)
    inputs_ND = ((features_ND.to(mean_D.device) - mean_D) / scale_D).double()
    variance_N, images_NN = torch.linalg.eigh(inputs_ND @ inputs_ND.T / n_images)
    kept_N = variance_N > _FLAT * variance_N[-1].clamp(min=1e-30)
    variance_R, images_NR = variance_N[kept_N], images_NN[:, kept_N]
    axes_DR = inputs_ND.T @ images_NR / (variance_R * n_images).sqrt()
    return variance_R.float(), axes_DR.float()
