"""Every stage's cost put together, and what of it would be too much."""

import heapq
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stages.params import Params
from stages.planning.amounts import duration
from stages.planning.costs import FLOAT, OPTIMIZER_COPIES, training_bytes
from stages.planning.counts import Counts
from stages.planning.machine import Hardware, hardware_of, usable_cores
from stages.planning.rates import Machine
from stages.planning.trainings import Training, Work
from stages.planning.work import work_of

DAY = 86_400.0
TOO_LONG = DAY  # of a stage
MOST_OF_MEMORY = 0.9
COPIES = 2  # of shards and products: in the workspace and in dvc's cache
IMAGE_CACHE = 2**30  # of decoded images that a store keeps


@dataclass(frozen=True)
class StagePlan:
    """One stage, or one matrix item.

    Attributes:
        stage: as dvc names it.
        nets: that it trains.
        steps: of all its nets.
        images: that go through networks, or become shards.
        flops: operations of all of it.
        parameters: of the largest net that it trains.
        memory_bytes: of the process and its helpers, or of the GPU.
        disk_bytes: that its products take, with dvc's copy.
        seconds: on this machine.
        measured_on: "" where the networks themselves were measured.
    """

    stage: str
    nets: int
    steps: int
    images: int
    flops: float
    parameters: int
    memory_bytes: int
    disk_bytes: int
    seconds: float
    measured_on: str = ""


@dataclass(frozen=True)
class Plan:
    """All stages, and what to change.

    Attributes:
        profile: of params.yaml.
        counts: images there are, or are assumed.
        hardware: that it was measured on.
        stages: in the order in which they run.
        working_bytes: disk that unfinished runs and the shard cache take at most, besides.
        was_busy: other work kept the cores while it was measured; see `rates`.
        warnings: what would be too much, each with a cheaper choice.
    """

    profile: str
    counts: Counts
    hardware: Hardware
    stages: list[StagePlan]
    working_bytes: int
    was_busy: bool
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        return sum(stage.disk_bytes for stage in self.stages) + self.working_bytes


def estimate(params: Params, counts: Counts, machine: Machine, startup_seconds: float) -> Plan:
    """Measure what has to be measured, and put it together.

    Args:
        params: all of them.
        counts: images of the run.
        machine: measures; the slow part.
        startup_seconds: that a stage's process takes before it begins.
    """
    works = work_of(params, counts)
    stages = [_stage_plan(params, counts, machine, work, startup_seconds) for work in works]
    hardware = hardware_of(machine.runtime)
    plan = Plan(
        params.profile,
        counts,
        hardware,
        stages,
        _working_bytes(params, machine, works),
        machine.is_busy,
    )
    plan.warnings.extend(warnings_of(params, plan))
    return plan


def _stage_plan(
    params: Params, counts: Counts, machine: Machine, work: Work, startup_seconds: float
) -> StagePlan:
    workers = _workers(params, machine, work)
    one_thread = workers > 1
    tasks, flops, measured_on = [], 0.0, ""
    for training in work.trainings:
        rate = machine.training(training, one_thread=one_thread)
        images = training.steps * training.batch_size / shares_of(params, machine, training)
        tasks += [images * rate.seconds] * training.nets
        flops += training.images * rate.seconds * rate.flops_per_second
        measured_on = measured_on or rate.measured_on
    ahead = 0.0
    for network, views, n_views in work.answered:
        rate = machine.reading(network, views, one_thread=one_thread)
        ahead += n_views * rate.seconds
        flops += n_views * rate.seconds * rate.flops_per_second
    seconds = startup_seconds + work.assumed_seconds
    seconds += makespan([task + ahead / len(tasks) for task in tasks], workers) if tasks else ahead
    for network, n_images in work.embedded:
        rate = machine.reading(network, None, one_thread=False)
        seconds += n_images * rate.seconds
        flops += n_images * rate.seconds * rate.flops_per_second
        measured_on = measured_on or rate.measured_on
    iterations = params.transfer.max_iterations
    iterations = params.probe.max_iterations if work.stage.startswith("probe") else iterations
    for n_images, n_fits in work.probed:
        seconds += machine.lbfgs_seconds(n_images, n_fits, iterations)
    if work.sharded:
        processes = params.runtime.shard_workers or usable_cores()
        seconds += work.sharded * machine.sharding_seconds() / processes
    parameters = max((machine.cost(t.network).parameters for t in work.trainings), default=0)
    return StagePlan(
        stage=work.stage,
        nets=sum(training.nets for training in work.trainings),
        steps=work.steps,
        images=work.images,
        flops=flops,
        parameters=parameters,
        memory_bytes=_memory(params, counts, machine, work, workers),
        disk_bytes=COPIES * _product_bytes(params, counts, machine, work),
        seconds=seconds,
        measured_on=measured_on,
    )


def shares_of(params: Params, machine: Machine, training: Training) -> int:
    """Hosts and GPUs divide pretraining's batch; processes of a CPU divide its cores as well."""
    if not training.is_contrastive:
        return 1
    if machine.runtime.device.type != "cuda":
        return params.runtime.hosts
    return max(min(params.runtime.processes, torch.cuda.device_count()), 1) * params.runtime.hosts


def makespan(tasks: Sequence[float], workers: int) -> float:
    """When the last of some tasks ends that workers take one after the other, in this order."""
    busy_until = [0.0] * max(workers, 1)
    for task in tasks:
        heapq.heappush(busy_until, heapq.heappop(busy_until) + task)
    return max(busy_until)


def _workers(params: Params, machine: Machine, work: Work) -> int:
    """Nets of a stage that train at once; pretraining is one net, on all threads."""
    nets = sum(training.nets for training in work.trainings)
    contrastive = any(training.is_contrastive for training in work.trainings)
    if machine.runtime.device.type != "cpu" or contrastive or sys.platform != "linux":
        return 1
    return max(min(params.runtime.trainings_at_once or torch.get_num_threads(), nets), 1)


def _net_bytes(params: Params, machine: Machine, training: Training) -> int:
    images = at_once = training.batch_size
    if training.is_contrastive:
        images = min(machine.share, training.batch_size)
        at_once = -(-images // machine.passes)
    return training_bytes(
        training,
        machine.cost(training.network),
        image_size=params.data.image_size,
        channels=params.data.channels,
        memory_keys=machine.keys_of(training),
        images=images,
        images_at_once=at_once,
    )


def _memory(params: Params, counts: Counts, machine: Machine, work: Work, workers: int) -> int:
    """Of all processes on a CPU, of the GPU where there is one."""
    largest = max((_net_bytes(params, machine, training) for training in work.trainings), default=0)
    if machine.runtime.device.type == "cuda":
        return largest
    pixels = counts.train * params.data.image_size**2 * params.data.channels
    kept = pixels if pixels <= IMAGE_CACHE and (work.trainings or work.embedded) else 0
    contrastive = any(training.is_contrastive for training in work.trainings)
    processes = params.runtime.processes if contrastive else workers
    return machine.own_bytes + kept + processes * largest


def _product_bytes(params: Params, counts: Counts, machine: Machine, work: Work) -> int:
    if work.sharded and params.data.shards_at is None:
        return round(work.sharded * counts.image_bytes)
    products = sum(t.nets * machine.cost(t.network).parameters * FLOAT for t in work.trainings)
    if work.stage == "gallery":
        width = machine.cost(work.embedded[0][0]).width
        products += counts.all_images * width * FLOAT
    return products


def _working_bytes(params: Params, machine: Machine, works: Sequence[Work]) -> int:
    """The largest working state, kept some times, and the cache of remote shards."""
    largest = 0
    for work in works:
        for training in work.trainings:
            momentum = machine.keys_of(training) > 0
            copies = 1 + OPTIMIZER_COPIES[training.optimizer.name] + momentum
            state = copies * machine.cost(training.network).parameters * FLOAT
            largest = max(largest, states_kept(params, training) * state)
    cache = params.runtime.cache_gigabytes * 1e9 if params.data.shards_at else 0
    return round(largest + cache)


def states_kept(params: Params, training: Training) -> int:
    """Working states of a training that lie on the disk at a time, at most."""
    saved = 3  # the last, the one before, and the one that is being written
    if not training.is_contrastive:
        return saved
    rolls_back = params.pretrain.on_non_finite == "rollback"
    return saved + (3 if rolls_back else 1)  # two marks and a new one; or the start


def warnings_of(params: Params, plan: Plan) -> list[str]:
    """What would be too much here, each with what is cheaper."""
    hardware = plan.hardware
    told: list[str] = []
    too_large: dict[tuple[str, int], list[str]] = defaultdict(list)
    for stage in plan.stages:
        if stage.memory_bytes > MOST_OF_MEMORY * hardware.memory_bytes:
            too_large[_section(stage), stage.memory_bytes].append(stage.stage)
    told += [
        f"{', '.join(stages)}: about {n_bytes / 1e9:,.0f} GB of memory, and {hardware.memory_of} "
        f"has {hardware.memory_bytes / 1e9:,.0f} GB.\n  {_smaller(section)}"
        for (section, n_bytes), stages in too_large.items()
    ]
    if hardware.gpus and params.runtime.processes > hardware.gpus:
        told.append(
            f"runtime.processes is {params.runtime.processes}, and there are GPUs for "
            f"{hardware.gpus}.\n  Write runtime.processes: {hardware.gpus}, or start the others on "
            "more hosts."
        )
    if plan.disk_bytes > hardware.disk_free_bytes:
        told.append(
            f"it needs about {plan.disk_bytes / 1e9:,.0f} GB of disk, and "
            f"{hardware.disk_free_bytes / 1e9:,.0f} GB are free here.\n"
            "  Let dvc link instead of copy (dvc config --local cache.type hardlink), put the "
            "shards in a bucket\n  (data.shards_at), or use fewer images (data.train_limit)."
        )
    long = [stage for stage in plan.stages if stage.seconds > TOO_LONG]
    told += [
        f"{stage.stage} would take about {duration(stage.seconds)} here.\n"
        f"  {_shorter(params, plan, stage)}"
        for stage in sorted(long, key=lambda stage: -stage.seconds)[:3]
    ]
    if len(long) > 3:
        told.append(f"{len(long) - 3} more stages would take more than a day each.")
    return told


def _section(stage: StagePlan) -> str:
    """Of params.yaml: "distill" of "distill_same@0.01" and of "student@..."."""
    section = stage.stage.partition("@")[0].partition("_")[0]
    return "distill" if section in {"student", "own"} else section


def _smaller(section: str) -> str:
    if section != "pretrain":
        return (
            f"Lower {section}.batch_size or runtime.trainings_at_once, or take a smaller encoder."
        )
    return (
        "Embed it in parts (runtime.micro_batch, with pretrain.batch_norm_images), recompute "
        "activations\n  (runtime.recompute: blocks), spread it over more processes "
        "(runtime.processes), lower\n  pretrain.batch_size, or take a smaller encoder."
    )


def _shorter(params: Params, plan: Plan, stage: StagePlan) -> str:
    choices = []
    if plan.hardware.gpu is None:
        choices.append("a GPU (runtime.device: auto finds it)")
        choices.append("python -m pipeline profile quick, made for two cores")
    elif params.pretrain.precision == "float32":
        choices.append("pretrain.precision: bfloat16")
    if stage.stage == "pretrain":
        number, unit = params.pretrain.duration.split()
        in_a_day = float(number) * TOO_LONG / stage.seconds
        if in_a_day >= 1:
            choices.append(f"pretrain.duration: {in_a_day:.2g} {unit} is a day")
        choices.append("the authors' weights instead of training (pretrain.init_from)")
    else:
        choices.append("a shorter duration or fewer finetune.seeds and label_fractions")
    choices.append("a smaller pretrain.encoder")
    return "Cheaper: " + ";\n  ".join(choices) + "."
