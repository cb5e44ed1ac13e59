"""Where and how the views of a training are made, as params.yaml says."""

from collections.abc import Callable
from functools import partial

import torch

from stages.errors import UserError
from stages.params import Params
from stages.training.batches import ViewLoader
from stages.training.runtime import Runtime


def loader_of(params: Params, runtime: Runtime) -> Callable[..., ViewLoader]:
    """`ViewLoader` with what says where and how its views are made.

    Raises:
        UserError: they are to be made on a GPU, and the training runs on none.
    """
    asked, on_gpu = params.runtime.views_on, runtime.device.type == "cuda"
    if asked == "gpu" and not on_gpu:
        raise UserError(
            f"params.yaml asks for runtime.views_on: gpu, but training runs on {runtime.device}.\n"
            "  Write auto or cpu."
        )
    on_cpu = asked == "cpu" or not on_gpu
    threads = params.runtime.loader_threads
    return partial(
        ViewLoader,
        device=torch.device("cpu") if on_cpu else runtime.device,
        pinned=on_cpu and on_gpu,
        n_threads=(2 if on_gpu else 1) if threads == "auto" else threads,
    )
