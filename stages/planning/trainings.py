"""What there is to do, in words that a cost can be put to."""

from dataclasses import dataclass, replace

from stages.sections.networks import EncoderParams, HeadParams
from stages.sections.optimizer import OptimizerParams
from stages.sections.views import ViewParams


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
        taught_by: a teacher that looks at every view.
        precision: of the network.
    """

    network: Network
    steps: int
    batch_size: int
    views: ViewParams
    optimizer: OptimizerParams
    nets: int = 1
    taught_by: Network | None = None
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


def kind_of(views: ViewParams) -> tuple[object, ...]:
    """What decides how long a view takes."""
    jitters = views.jitter_probability > 0 and (views.brightness > 0 or views.contrast > 0)
    in_colour = views.saturation > 0 or views.hue > 0
    return views.convention, views.size, jitters, jitters and in_colour, views.blur_probability > 0
