"""Batches of views, made ahead of the step that needs them.

Shapes: V views of an image, B images (this process's rows of the global batch), C H W.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.data.on_device import to_device
from stages.data.order import Order
from stages.data.views import ViewRecipe, make_views

Item = TypeVar("Item")

DEPTH = 2  # batches that wait for their step
FLOAT_BYTES = 4


class Images(Protocol):
    """What is trained on: a store of shards, or images listed one by one."""

    @property
    def key_hashes(self) -> NDArray[np.uint64]: ...

    @property
    def n_images(self) -> int: ...

    def images(self, positions_B: NDArray[np.int64]) -> Tensor | list[Tensor]: ...

    def class_tensor(self, positions_B: NDArray[np.int64]) -> Tensor | None: ...

    def order(self, seed: int) -> Order: ...

    def read_ahead(self, shards: Iterable[int]) -> None: ...


@dataclass(frozen=True)
class Batch:
    """Views of some images, their positions in the store and, where they count, their classes."""

    views_VBCHW: Tensor
    positions_B: np.ndarray
    classes_B: Tensor | None = None


@dataclass
class Waited:
    """Seconds the trainer stood still for data."""

    seconds: float = 0.0


@dataclass(frozen=True)
class ViewLoader:
    """The stream of view batches of a store: a pure function of seed and step.

    Attributes:
        store: where images come from.
        recipe: how views are made.
        batch_size: images per step over all processes; never more than the store holds.
        n_views: V.
        seed: decides order and views.
        rows: this process's rows of the global batch.
        device: on which views are made, and lie.
        pinned: whether views made on the CPU wait where a GPU can fetch them by itself.
        n_threads: batches that are made at once, in their order; 0: each when it is asked for.
    """

    store: Images
    recipe: ViewRecipe
    batch_size: int
    n_views: int
    seed: int
    rows: slice = field(default_factory=lambda: slice(None))
    waited: Waited = field(default_factory=Waited)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    pinned: bool = False
    n_threads: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return max(self.store.n_images // self.batch_size, 1)

    def bytes_on_device(self, channels: int) -> int:
        """Of views on a GPU at most: those in use, those that wait, and those in the making."""
        if self.device.type != "cuda":
            return 0
        n_images = len(range(*self.rows.indices(self.batch_size)))
        n_batches = 1 + (DEPTH + self.n_threads if self.n_threads else 0)
        return n_batches * n_images * self.n_views * channels * self.recipe.size**2 * FLOAT_BYTES

    @cached_property
    def order(self) -> Order:
        return self.store.order(self.seed)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps start..stop, each made while the one before it is used."""
        return ahead(self.batch, range(start, stop), self.waited, n_threads=self.n_threads)

    def batch(self, step: int) -> Batch:
        """The batch of one step, without having read any other."""
        self.store.read_ahead(self.order.shards_ahead(step, self.batch_size))
        epoch, positions = self.order.global_batch(step, self.batch_size)
        positions_B = positions[self.rows]
        draw = partial(
            make_views,
            recipe=self.recipe,
            seed=self.seed,
            epoch=epoch,
            key_hashes=self.store.key_hashes[positions_B],
            n_views=self.n_views,
        )
        if self.device.type == "cuda":
            views_VBCHW = self._beside_training(
                lambda: draw(to_device(self.store.images(positions_B), self.device))
            )
        else:
            views_VBCHW = draw(self.store.images(positions_B))
        if self.pinned:
            views_VBCHW = views_VBCHW.pin_memory()
        return Batch(views_VBCHW, positions_B, self.store.class_tensor(positions_B))

    def _beside_training(self, make: Callable[[], Tensor]) -> Tensor:
        """Something made on a GPU while it trains, and finished when this returns."""
        stream = _OWN.stream(self.device)
        with torch.cuda.stream(stream):
            made = make()
        made.record_stream(torch.cuda.default_stream(self.device))  # where the step will read it
        stream.synchronize()
        return made


class _OneForEachThread(threading.local):
    """A stream of a thread's own, so that what it makes waits for nobody else's work."""

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        if not hasattr(self, "kept"):
            self.kept = torch.cuda.Stream(device)
        return self.kept


_OWN = _OneForEachThread()


def ahead(
    make: Callable[[int], Item],
    steps: range,
    waited: Waited,
    depth: int = DEPTH,
    n_threads: int = 1,
) -> Generator[Item, None, None]:
    """make(step) for each step in its turn, up to `depth` results made ahead.

    The threads end with the iterator, also when that is dropped half-way; an error of `make` is
    raised where the result would have been taken.

    Args:
        make: called from several threads at once, if there are several.
        steps: in whose order results come.
        waited: told of the seconds that the taker stood still.
        depth: results that wait to be taken.
        n_threads: 0: nothing is made ahead.
    """
    coming = iter(steps)
    if n_threads == 0:
        for step in coming:
            with _timed(waited):
                made = make(step)
            yield made
        return
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="views")
    try:
        making = deque(pool.submit(make, step) for step in islice(coming, depth + n_threads))
        while making:
            with _timed(waited):
                made = making.popleft().result()
            making.extend(pool.submit(make, step) for step in islice(coming, 1))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _timed(waited: Waited) -> Generator[None]:
    begun = time.perf_counter()
    yield
    waited.seconds += time.perf_counter() - begun
