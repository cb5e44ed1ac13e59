"""Batches of views, made ahead of the step that needs them.

Shapes: V views of an image, B images (this process's rows of the global batch), C H W.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from stages.data.order import Order
from stages.data.store import ImageStore
from stages.data.views import ViewRecipe, make_views

Item = TypeVar("Item")


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
    """

    store: ImageStore
    recipe: ViewRecipe
    batch_size: int
    n_views: int
    seed: int
    rows: slice = field(default_factory=lambda: slice(None))
    waited: Waited = field(default_factory=Waited)

    @property
    def steps_per_epoch(self) -> int:
        return max(self.store.n_images // self.batch_size, 1)

    @cached_property
    def order(self) -> Order:
        return self.store.order(self.seed)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps start..stop, each made while the one before it is used."""
        return ahead(self.batch, range(start, stop), self.waited)

    def batch(self, step: int) -> Batch:
        """The batch of one step, without having read any other."""
        self.store.read_ahead(self.order.shards_ahead(step, self.batch_size))
        epoch, positions = self.order.global_batch(step, self.batch_size)
        positions_B = positions[self.rows]
        views_VBCHW = make_views(
            self.store.images(positions_B),
            self.recipe,
            seed=self.seed,
            epoch=epoch,
            key_hashes=self.store.key_hashes[positions_B],
            n_views=self.n_views,
        )
        return Batch(views_VBCHW, positions_B, self.store.class_tensor(positions_B))


def ahead(
    make: Callable[[int], Item], steps: range, waited: Waited, depth: int = 2
) -> Generator[Item, None, None]:
    """make(step) for each step, up to `depth` results made ahead in a thread.

    The thread ends with the iterator, also when that is dropped half-way; an error of `make` is
    raised where the result would have been taken.
    """
    results: queue.Queue[_Made[Item]] = queue.Queue(maxsize=depth)
    dropped = threading.Event()

    def work() -> None:
        for step in steps:
            try:
                made = _Made([make(step)])
            except BaseException as error:  # handed over, and raised by the taker
                made = _Made([], error)
            while not dropped.is_set():
                try:
                    results.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if dropped.is_set() or made.error is not None:
                return

    thread = threading.Thread(target=work, name="views", daemon=True)
    thread.start()
    try:
        for _ in steps:
            begun = time.perf_counter()
            made = results.get()
            waited.seconds += time.perf_counter() - begun
            yield made.taken()
    finally:
        dropped.set()
        thread.join()


@dataclass(frozen=True)
class _Made(Generic[Item]):
    """One result, or the error that came instead."""

    result: list[Item]
    error: BaseException | None = None

    def taken(self) -> Item:
        if self.error is not None:
            raise self.error
        return self.result[0]
