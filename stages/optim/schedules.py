"""Learning rates and durations, as pure functions of the step.

`step` counts the updates done before, so the first update has step 0.
"""

import math
from typing import Literal


def warmup_cosine(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to `peak`, then half a cosine to 0 (SimCLR, section 2.2; official code).

    With a warm-up the first update has lr 0: it moves the moving statistics and nothing else.
    Past `total_steps` the lr stays 0.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    decay_steps = max(total_steps - warmup_steps, 1)
    progress = min(step - warmup_steps, decay_steps) / decay_steps
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def scaled_lr(base_lr: float, batch_size: int, scaling: Literal["linear", "sqrt", "none"]) -> float:
    """The peak lr for a batch of so many images, not views (SimCLR, section 2.2 and B.1).

    linear: base_lr is per 256 images; sqrt: times the square root of the batch; none: as it is.
    """
    match scaling:
        case "linear":
            return base_lr * batch_size / 256
        case "sqrt":
            return base_lr * math.sqrt(batch_size)
        case "none":
            return base_lr
    raise ValueError(f"no lr scaling is called {scaling!r}; choose linear, sqrt or none")


def official_total_steps(n_images: int, epochs: int, batch_size: int) -> int:
    """Updates of a run by the official code, which makes one more than whole batches fit."""
    return n_images * epochs // batch_size + 1


def official_warmup_steps(n_images: int, warmup_epochs: float, batch_size: int) -> int:
    """Updates of the official warm-up; `warmup_epochs` may be a fraction."""
    return round(warmup_epochs * n_images // batch_size)
