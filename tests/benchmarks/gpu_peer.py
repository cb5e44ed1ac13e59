"""What a step of SimCLR is without this project: torchvision's ResNet and the loss as it is read.

Shapes: A views of the batch, both of each image: 2B.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


def plain_step(
    depth: int, views_VBCHW: Tensor, *, bfloat16: bool, channels_last: bool
) -> Callable[[], Tensor]:
    """A step on these views each time it is called: forward, NT-Xent by its matrix, back, SGD."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, f"resnet{depth}")()
    width = network.fc.in_features
    network.fc = nn.Sequential(
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
        *(nn.Linear(width, 128, bias=False), nn.BatchNorm1d(128)),
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = views_VBCHW.device
    network = network.to(device).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        images_ACHW = views_VBCHW.flatten(0, 1).contiguous(memory_format=layout)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            z_AP = network(images_ACHW)
        z_AP = F.normalize(z_AP.float(), dim=1)
        logits_AA = z_AP @ z_AP.T / 0.1
        logits_AA = logits_AA.masked_fill(
            torch.eye(len(z_AP), dtype=torch.bool, device=device), -torch.inf
        )
        partner_A = torch.arange(len(z_AP), device=device).roll(len(z_AP) // 2)
        loss = F.cross_entropy(logits_AA, partner_A)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
