"""How fast this machine is, from a few real steps of the real networks on drawn images.

A network that is too large to try is measured with a smaller batch, and one that is too large for
that in a narrower version; time then follows from the operations. Where nets train side by side,
a core each, what counts is the time of the processor on one thread. So it is for all else where
other work keeps the cores busy: all threads together would be quicker than that, but how much can't
be seen then.

Shapes: B images, C H W.
"""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import psutil
import torch
from torch import nn

from stages.data.store import CACHE_BYTES, ImageStore
from stages.evaluation.linear_probe import regularisation_path
from stages.params import Params
from stages.planning.costs import Cost, cost_of, step_flops, training_bytes
from stages.planning.counts import Counts
from stages.planning.drawn import DrawnImages, drawn_photo, seconds_of_sharding
from stages.planning.machine import cores_are_busy, threads
from stages.planning.trainings import Network, Training, kind_of
from stages.sections.views import ViewParams
from stages.training.loading import loader_of
from stages.training.pretraining import build_state, step_of
from stages.training.products import build_from
from stages.training.recipes import evaluation_recipe, optimizer_for, view_recipe
from stages.training.runtime import Runtime
from stages.training.state import TrainState
from stages.training.steps import Step, classify_step

# What a probe may cost is judged by a slow machine: operations a second.
SLOW_FLOPS = {"cpu": 3e10, "cuda": 4e12}
MOST_SECONDS = 6.0  # of the fewest steps, at that speed
PROBE_SECONDS = 2.0  # of steps that are measured, for each network
PROBE_BYTES = 2e9  # that a probe's network may take on a CPU
FEWEST_STEPS = 3
SMALLEST_BATCH = 4
DRAWN = 512  # images in memory
READ_AT_ONCE = 250
LBFGS_ROWS, LBFGS_ITERATIONS = (200, 2_000), 10
LBFGS_USUAL = 30  # iterations of one l2 that was begun at the answer of the one before


@dataclass(frozen=True)
class Rate:
    """Of a network on this machine.

    Attributes:
        seconds: of one image; with all threads, or of one core where nets share the cores.
        flops_per_second: that were reached.
        measured_on: "" for the very step; else what was measured instead of it.
    """

    seconds: float
    flops_per_second: float
    measured_on: str = ""


@dataclass
class Machine:
    """Measures what is asked for, each network once.

    Attributes:
        params: all of them.
        counts: images there will be.
        runtime: device and threads.
        own_bytes: of this process, before anything is measured.
        is_busy: other work keeps the cores.
    """

    params: Params
    counts: Counts
    runtime: Runtime
    own_bytes: int = field(default_factory=lambda: psutil.Process().memory_info().rss)
    is_busy: bool = field(default_factory=cores_are_busy)
    _known: dict[tuple[Any, ...], Rate] = field(default_factory=dict)

    @property
    def _counts_cores(self) -> bool:
        return self.is_busy and self.runtime.device.type == "cpu"

    def cost(self, network: Network) -> Cost:
        recompute = self.params.runtime.recompute if network.head is not None else "none"
        data = self.params.data
        return cost_of(network, data.image_size, data.channels, self.counts.classes, recompute)

    def training(self, training: Training, *, one_thread: bool) -> Rate:
        """Of an image in a step of a training, the making of its views included."""
        one_thread = one_thread or self._counts_cores
        key = (training.network, kind_of(training.views), one_thread)
        if key not in self._known:
            tried, words = self._affordable(training)
            seconds = self._time_steps(tried, one_thread)
            flops = self._flops(tried)
            self._known[key] = Rate(seconds, flops / seconds, words)
        rate = self._known[key]
        return replace(rate, seconds=self._flops(training) / rate.flops_per_second)

    def reading(self, network: Network, views: ViewParams | None, *, one_thread: bool) -> Rate:
        """Of an image that a finished net looks at; `views`: of a random view of it."""
        one_thread = one_thread or self._counts_cores
        key = (network, "reads", views and kind_of(views), one_thread)
        if key not in self._known:
            narrower, size = network, READ_AT_ONCE
            while not self._fits(forward := self.cost(narrower).forward_flops * size):
                size //= 2
                if size < SMALLEST_BATCH:
                    narrower, size = narrower.narrower(), SMALLEST_BATCH
            seconds = self._time_reading(narrower, views, size, one_thread)
            words = "" if narrower == network else narrower.in_words
            self._known[key] = Rate(seconds, forward / size / seconds, words)
        rate = self._known[key]
        return replace(rate, seconds=self.cost(network).forward_flops / rate.flops_per_second)

    def lbfgs_seconds(self, n_images: int, n_fits: int, max_iterations: int) -> float:
        """Of linear classifiers on features, one after the other along a path of l2 values."""
        few, many = self._lbfgs_iterations
        each = (many - few) / (LBFGS_ROWS[1] - LBFGS_ROWS[0])
        seconds = few + max(each, 0.0) * (n_images - LBFGS_ROWS[0])
        return max(seconds, 0.0) * n_fits * min(max_iterations, LBFGS_USUAL)

    @cached_property
    def _lbfgs_iterations(self) -> tuple[float, float]:
        """Seconds of one iteration, on few and on many images."""
        width = self.cost(Network(self.params.pretrain.encoder)).width
        generator = torch.Generator().manual_seed(0)
        n_classes = max(self.counts.classes, 2)
        taken = []
        for rows in LBFGS_ROWS:
            features_ND = torch.randn(rows, width, generator=generator)
            classes_N = torch.arange(rows) % n_classes
            arguments = (features_ND, classes_N, n_classes, [0.01], LBFGS_ITERATIONS)
            with threads(1 if self.is_busy else None):
                begun = self._now()
                next(regularisation_path(*arguments))
                taken.append((self._now() - begun) / LBFGS_ITERATIONS)
        return taken[0], taken[1]

    def sharding_seconds(self) -> float:
        """Of one image that becomes part of a shard, in one process."""
        with threads(1):  # others of torch's would spin, and count
            return seconds_of_sharding(self.params.data, self._now)

    def _flops(self, training: Training) -> float:
        """Of an image."""
        keys, passes = self.keys_of(training), self.passes if training.is_contrastive else 1
        cost = self.cost(training.network)
        teacher = self.cost(training.taught_by) if training.taught_by else None
        flops = step_flops(training, cost, memory_keys=keys, passes=passes, teacher=teacher)
        return flops / training.batch_size

    @property
    def passes(self) -> int:
        """Of pretraining's batch through the network, as far as params say."""
        asked, share = self.params.runtime.micro_batch, self.share
        return max(-(-share // asked), 1) if isinstance(asked, int) else 1

    @property
    def share(self) -> int:
        """Images of a step of pretraining in one process."""
        return max(self.params.pretrain.batch_size // self.params.runtime.world_size, 1)

    def _fits(self, flops: float) -> bool:
        slow = SLOW_FLOPS[self.runtime.device.type]
        return flops * FEWEST_STEPS <= slow * MOST_SECONDS

    def _affordable(self, training: Training) -> tuple[Training, str]:
        """The training with a batch, and if need be a width, that a probe can do."""
        room, words = PROBE_BYTES, ""
        if self.runtime.device.type == "cuda":
            room = 0.6 * torch.cuda.mem_get_info()[0]
        tried = replace(training, taught_by=None)
        if training.is_contrastive:
            tried = replace(tried, batch_size=max(min(tried.batch_size, self.share), 2))
        while not self._fits(self._flops(tried) * tried.batch_size) or room < self._bytes(tried):
            if tried.batch_size >= 2 * SMALLEST_BATCH:
                tried = replace(tried, batch_size=tried.batch_size // 2)
                continue
            tried = replace(tried, network=tried.network.narrower())
            words = tried.network.in_words
        return tried, words

    def _bytes(self, training: Training) -> int:
        return training_bytes(
            training,
            self.cost(training.network),
            image_size=self.params.data.image_size,
            channels=self.params.data.channels,
            memory_keys=self.keys_of(training),
            images=training.batch_size,
            images_at_once=training.batch_size,
        )

    def keys_of(self, training: Training) -> int:
        """Of the momentum memory."""
        memory = self.params.pretrain.memory
        return memory.size if training.is_contrastive and memory.kind != "none" else 0

    def _time_steps(self, training: Training, one_thread: bool) -> float:
        state, step = self._ready(training)
        loader = loader_of(self.params, self.runtime)(
            self._images,
            view_recipe(training.views, self.params.data.image_size),
            training.batch_size,
            n_views=training.views_per_image,
            seed=0,
        )
        batches = loader.batches(0, sys.maxsize)
        with closing(batches), threads(1 if one_thread else None):
            taken = self._time(lambda: step(state, next(batches)), of_cores=one_thread)
        return taken / training.batch_size

    def _ready(self, training: Training) -> tuple[TrainState, Step]:
        data, pretrain = self.params.data, self.params.pretrain
        encoder, head = training.network.encoder, training.network.head
        architecture = {"encoder": encoder.model_dump(), "channels": data.channels}
        if head is not None:
            asked = pretrain.model_copy(update={"encoder": encoder, "batch_norm_images": None})
            architecture["head"] = head.model_dump()
            recompute = self.params.runtime.recompute
            size = training.batch_size
            state = build_state(asked, architecture, size, self.runtime, recompute)
            return state, step_of(asked, self.runtime)
        model = self.runtime.place(self._classifier(training.network)).train()
        optimizer = optimizer_for(
            model, training.optimizer, training.batch_size, fused=self.runtime.fused_optimizer
        )
        return TrainState(model, optimizer), classify_step(self.runtime, training.precision)

    def _classifier(self, network: Network) -> nn.Module:
        return build_from(
            {
                "encoder": network.encoder.model_dump(),
                "channels": self.params.data.channels,
                "head": {},
                "from_layer": 0,
                "classes": max(self.counts.classes, 2),
            }
        )

    def _time_reading(
        self, network: Network, views: ViewParams | None, size: int, one_thread: bool
    ) -> float:
        model = self.runtime.place(self._classifier(network)).eval()
        images = self._images
        places = np.arange(size) % images.n_images
        seen_as = evaluation_recipe(self.params)
        recipe = view_recipe(views, self.params.data.image_size) if views else None
        make = loader_of(self.params, self.runtime)
        loader = make(images, recipe, size, n_views=1, seed=0) if recipe else None

        def read() -> None:
            shown = loader.batch(0).views_VBCHW[0] if loader else seen_as(images.images(places))
            with torch.inference_mode():
                model(self.runtime.arrange(shown.to(self.runtime.device)))

        with threads(1 if one_thread else None):
            return self._time(read, of_cores=one_thread) / size

    def _time(self, work: Callable[[], object], *, of_cores: bool) -> float:
        """Seconds of the work, of the fastest quarter of some tries; or of the processor."""
        work()
        self._finish()
        begun, core_begun = time.perf_counter(), time.process_time()
        tries: list[float] = []
        while len(tries) < FEWEST_STEPS or time.perf_counter() < begun + PROBE_SECONDS:
            started = time.perf_counter()
            work()
            self._finish()
            tries.append(time.perf_counter() - started)
        if of_cores:
            return (time.process_time() - core_begun) / len(tries)
        fastest = sorted(tries)[: (len(tries) + 3) // 4]
        return sum(fastest) / len(fastest)

    def _now(self) -> float:
        return time.process_time() if self.is_busy else time.perf_counter()

    def _finish(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()

    @cached_property
    def _images(self) -> ImageStore:
        data = self.params.data
        shape = (DRAWN, data.channels, data.image_size, data.image_size)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        decoded = self.counts.train * data.image_size**2 * data.channels
        jpeg = None if decoded <= CACHE_BYTES else drawn_photo(0, data.channels)
        return cast("ImageStore", DrawnImages(pixels, jpeg, data.channels))
