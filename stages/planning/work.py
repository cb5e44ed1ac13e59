"""What each stage of params.yaml will do, in nets, steps and images; nothing is measured here."""

from dataclasses import dataclass, replace

from stages.params import (
    EncoderParams,
    FinetuneOverride,
    HeadParams,
    OptimizerParams,
    Params,
    SupervisedOverride,
    ViewParams,
    duration_in_steps,
)
from stages.planning.counts import Counts

TRANSFER_IMAGES = {"digits": 1_797, "elpv": 2_624}


@dataclass(frozen=True)
class Network:
    """A network that is trained or read out.

    Attributes:
        encoder: of params.yaml.
        head: None for a classifier, whose layers of g are a small part of it.
    """

    encoder: EncoderParams
    head: HeadParams | None = None

    def narrower(self) -> "Network":
        """Half as wide: a quarter of the operations and the weights."""
        width = self.encoder.width_multiplier / 2
        encoder = self.encoder.model_copy(update={"width_multiplier": width})
        return replace(self, encoder=encoder)

    @property
    def in_words(self) -> str:
        return f"its network at width {self.encoder.width_multiplier:g}"


@dataclass(frozen=True)
class Training:
    """Nets of one kind that a stage trains.

    Attributes:
        network: what is trained.
        steps: of each net.
        batch_size: images of a step.
        views: what images are seen as.
        optimizer: of params.yaml.
        nets: how many are trained so.
        taught: a teacher of the same network looks at every view.
        precision: of the network.
    """

    network: Network
    steps: int
    batch_size: int
    views: ViewParams
    optimizer: OptimizerParams
    nets: int = 1
    taught: bool = False
    precision: str = "float32"

    @property
    def is_contrastive(self) -> bool:
        return self.network.head is not None

    @property
    def views_per_image(self) -> int:
        return 2 if self.is_contrastive else 1

    @property
    def images(self) -> int:
        """Of all nets."""
        return self.steps * self.batch_size * self.nets


@dataclass(frozen=True)
class Work:
    """One stage, or one of its matrix items.

    Attributes:
        stage: as dvc names it.
        trainings: nets that it trains, some of them side by side.
        embedded: images that a finished net reads, by network.
        answered: views that a teacher answers ahead, by what they are seen as.
        probed: (images, l2 values) of each linear classifier by L-BFGS.
        sharded: images that become shards.
        assumed_seconds: of drawing and reading that no probe measures.
    """

    stage: str
    trainings: tuple[Training, ...] = ()
    embedded: tuple[tuple[Network, int], ...] = ()
    answered: tuple[tuple[Network, ViewParams, int], ...] = ()
    probed: tuple[tuple[int, int], ...] = ()
    sharded: int = 0
    assumed_seconds: float = 0.0

    @property
    def steps(self) -> int:
        return sum(training.steps * training.nets for training in self.trainings)

    @property
    def images(self) -> int:
        """That networks go through, back or not; or that become shards."""
        return (
            sum(training.images for training in self.trainings)
            + sum(n for _, n in self.embedded)
            + sum(n for *_, n in self.answered)
            + self.sharded
        )


def work_of(params: Params, counts: Counts) -> list[Work]:
    """Every stage, in the order in which they run."""
    fractions = params.finetune.label_fractions
    classifier = Network(params.pretrain.encoder)
    transfer = [TRANSFER_IMAGES[name] for name in params.transfer.datasets]
    return [
        Work("shard", sharded=counts.all_images),
        *(Work(f"subsets@{fraction}") for fraction in fractions),
        _pretrain(params, counts),
        Work("gallery", embedded=((classifier, counts.all_images),), assumed_seconds=4),
        *(_probe(params, counts, fraction) for fraction in fractions),
        *(_supervised(params, counts, fraction) for fraction in fractions),
        *(_finetune(params, counts, fraction) for fraction in fractions),
        *(_distill(params, counts, fraction, "same") for fraction in fractions),
        *(_distill(params, counts, fraction, "small") for fraction in fractions),
        Work(
            "transfer",
            embedded=tuple((classifier, 2 * n) for n in transfer),
            probed=tuple((round(0.6 * n), len(params.transfer.l2_grid)) for n in transfer) * 3,
            assumed_seconds=3,
        ),
        Work("report", assumed_seconds=8),
    ]


def _pretrain(params: Params, counts: Counts) -> Work:
    pretrain = params.pretrain
    network = Network(pretrain.encoder, pretrain.head)
    if pretrain.init_from is not None:
        return Work("pretrain", embedded=((Network(pretrain.encoder), 512),))
    batch_size = min(pretrain.batch_size, counts.train)
    steps = duration_in_steps(pretrain.duration, counts.train, batch_size)
    looked = ()
    if pretrain.online_probe.every is not None:
        every = duration_in_steps(pretrain.online_probe.every, counts.train, batch_size)
        seen = min(pretrain.online_probe.images, counts.labelled) + min(
            pretrain.online_probe.images, counts.validation
        )
        looked = ((Network(pretrain.encoder), (steps // every + 1) * seen),)
    training = Training(
        network,
        steps,
        batch_size,
        pretrain.views,
        pretrain.optimizer,
        precision=pretrain.precision,
    )
    return Work("pretrain", (training,), embedded=looked)


def _probe(params: Params, counts: Counts, fraction: str) -> Work:
    network, seeds = Network(params.pretrain.encoder), params.finetune.seeds
    labels, held_out = counts.labels_of(fraction), counts.validation + counts.test
    embedded = ((network, held_out * (1 + seeds) + 2 * seeds * labels),)
    stage = f"probe@{fraction}"
    recipe = params.probe.sgd
    if params.probe.method == "lbfgs" or recipe is None:
        grid = len(params.probe.l2_grid)
        return Work(stage, embedded=embedded, probed=((labels, grid),) * (2 * seeds))
    batch_size = min(recipe.batch_size, labels)
    # The encoder is frozen: what is trained costs nothing, so a step is a pass forward.
    images = duration_in_steps(recipe.duration, labels, batch_size) * batch_size * 2 * seeds
    return Work(stage, embedded=embedded, answered=((network, recipe.views, images),))


def _supervised(params: Params, counts: Counts, fraction: str) -> Work:
    recipe, seeds = params.supervised, params.finetune.seeds
    override = recipe.overrides.get(fraction, SupervisedOverride())
    labels = counts.labels_of(fraction)
    batch_size = min(recipe.batch_size, labels)
    durations = [
        duration_in_steps(duration, labels, batch_size)
        for duration in override.duration_grid or recipe.duration_grid
    ]
    one = Training(
        Network(params.pretrain.encoder),
        max(durations),
        batch_size,
        recipe.views_grid[0],
        recipe.optimizer,
    )
    n_lrs = len(override.lr_grid or recipe.lr_grid)
    grid = [
        replace(one, steps=steps, views=views, nets=n_lrs)
        for steps in durations
        for views in recipe.views_grid
    ]
    kept = [replace(one, nets=seeds - 1)] if seeds > 1 else []  # of the longest, until it is known
    embedded = _examined(counts, seeds) + n_lrs * len(grid) * counts.validation
    network = Network(params.pretrain.encoder)
    return Work(f"supervised@{fraction}", (*grid, *kept), embedded=((network, embedded),))


def _finetune(params: Params, counts: Counts, fraction: str) -> Work:
    recipe, seeds = params.finetune, params.finetune.seeds
    override = recipe.overrides.get(fraction, FinetuneOverride())
    labels = counts.labels_of(fraction)
    batch_size = min(override.batch_size or recipe.batch_size, labels)
    nets = len(recipe.layers_at(fraction)) * seeds
    training = Training(
        Network(params.pretrain.encoder),
        duration_in_steps(override.duration or recipe.duration, labels, batch_size),
        batch_size,
        recipe.views,
        recipe.optimizer,
        nets,
    )
    embedded = ((training.network, _examined(counts, nets)),)
    return Work(f"finetune@{fraction}", (training,), embedded=embedded)


def _distill(params: Params, counts: Counts, fraction: str, which: str) -> Work:
    recipe = params.distill
    student = recipe.same if which == "same" else recipe.small
    nets = student.seeds or params.finetune.seeds
    batch_size = min(recipe.batch_size, counts.train)
    teacher = Network(params.pretrain.encoder)
    training = Training(
        Network(student.encoder or params.pretrain.encoder),
        duration_in_steps(student.duration, counts.train, batch_size),
        batch_size,
        recipe.views,
        recipe.optimizer,
        nets,
        taught=recipe.teacher_views == 0,
    )
    ahead = recipe.teacher_views * counts.train * nets
    return Work(
        f"distill_{which}@{fraction}",
        (training,),
        embedded=((training.network, _examined(counts, nets)),),
        answered=((teacher, recipe.views, ahead),) if ahead else (),
    )


def _examined(counts: Counts, nets: int) -> int:
    """Images that finished nets are scored on."""
    return nets * (counts.validation + counts.test)
