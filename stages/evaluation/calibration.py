"""Does a classifier that says 80% come out right 80% of the time (Guo et al. 2017)?

Shapes: N images, K classes.
"""

import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of confidence, equally wide, as in the paper that made the measure common
COLDEST, HOTTEST = 0.01, 100.0  # limits of a temperature
_HALVINGS = 30


def best_temperature(logits_NK: Tensor, classes_N: Tensor) -> float:
    """The temperature that makes the true classes likeliest; fit it on validation, never on test.

    The loss is convex in 1 / temperature, so its slope is bisected. Where every image is right (or
    the loss falls for ever in the other direction), it is the limit.
    """
    logits_NK = logits_NK.double()
    true_N = logits_NK.gather(1, classes_N[:, None])[:, 0]
    low, high = 1 / HOTTEST, 1 / COLDEST  # of 1 / temperature
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        expected_N = (F.softmax(logits_NK * middle, dim=1) * logits_NK).sum(dim=1)
        if float((expected_N - true_N).mean()) <= 0:  # the loss falls, or is 0 already
            low = middle
        else:
            high = middle
    return 1 / (low * high) ** 0.5
