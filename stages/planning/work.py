"""What each stage of params.yaml will do, in nets, steps and images; nothing is measured here."""

from collections.abc import Iterator
from dataclasses import replace

from stages.params import Params
from stages.planning.counts import Counts
from stages.planning.trainings import Network, Training, Work
from stages.sections.kinds import duration_in_steps
from stages.sections.labels import FinetuneOverride, SupervisedOverride
from stages.sections.students import StudentParams
from stages.training.sizes import label_shares_of, layers_of, of_size, student_of, subsets_of

TRANSFER_IMAGES = {"digits": 1_797, "elpv": 2_624}


def work_of(params: Params, counts: Counts) -> list[Work]:
    """Every stage, in the order in which they run."""
    fractions = params.finetune.label_fractions
    classifier = Network(params.pretrain.encoder)
    transfer = [TRANSFER_IMAGES.get(name, 2_000) for name in params.transfer.datasets]
    return [
        Work("listing"),
        Work("shard", sharded=counts.all_images),
        *(Work(f"subsets@{fraction}") for fraction in fractions),
        _pretrain(params, counts, "pretrain"),
        Work("gallery", embedded=((classifier, counts.all_images),), assumed_seconds=4),
        *(_probe(params, counts, fraction) for fraction in fractions),
        *(_supervised(params, counts, fraction, None) for fraction in fractions),
        *(_finetune(params, counts, fraction, None) for fraction in fractions),
        *(_distill(params, counts, fraction, "same") for fraction in fractions),
        *(_distill(params, counts, fraction, "small") for fraction in fractions),
        *(
            _semisup(params, counts, fraction, method)
            for method in params.semisup.methods
            for fraction in fractions
        ),
        *_study_of_sizes(params, counts),
        Work(
            "transfer",
            embedded=tuple((classifier, 2 * n) for n in transfer),
            probed=tuple((round(0.6 * n), len(params.transfer.l2_grid)) for n in transfer) * 3,
            assumed_seconds=3,
        ),
        Work("report", assumed_seconds=8),
    ]


def _study_of_sizes(params: Params, counts: Counts) -> Iterator[Work]:
    """Nothing where sizes.encoders and sizes.students are empty."""
    sizes = params.sizes
    for size in sizes.encoders:
        sized = of_size(params, size)
        yield _pretrain(sized, counts, f"pretrain_size@{size}")
        for fraction in sizes.label_fractions:
            yield _supervised(sized, counts, fraction, size)
            yield _finetune(sized, counts, fraction, size)
    for teacher in (None, *sizes.encoders):
        for student in sizes.students:
            for fraction in sizes.label_fractions:
                yield _student(params, counts, fraction, teacher, student)


def _pretrain(params: Params, counts: Counts, stage: str) -> Work:
    pretrain = params.pretrain
    network = Network(pretrain.encoder, pretrain.head)
    if pretrain.init_from is not None:
        return Work(stage, embedded=((Network(pretrain.encoder), 512),))
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
    return Work(stage, (training,), embedded=looked)


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


def _supervised(params: Params, counts: Counts, fraction: str, size: str | None) -> Work:
    recipe = params.supervised
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
    nets = subsets_of(params, size) * params.finetune.initialisations
    grid = [
        replace(one, steps=steps, views=views, nets=len(override.lr_grid or recipe.lr_grid))
        for steps in durations
        for views in recipe.views_grid
    ]
    return _tuned(_stage_of("supervised", fraction, size), grid, one, nets, counts)


def _semisup(params: Params, counts: Counts, fraction: str, method: str) -> Work:
    recipe = params.semisup
    labels = counts.labels_of(fraction)
    batch_size = min(recipe.batch_size, labels)
    durations = [duration_in_steps(text, labels, batch_size) for text in recipe.duration_grid]
    views = (2 if method == "fixmatch" else 1) * recipe.unlabelled_ratio * batch_size
    one = Training(
        Network(params.pretrain.encoder),
        max(durations),
        batch_size + views,
        recipe.strong_views if method == "fixmatch" else recipe.weak_views,
        recipe.optimizer,
    )
    grid = [replace(one, steps=steps, nets=len(recipe.lr_grid)) for steps in durations]
    nets = recipe.seeds or params.finetune.seeds
    return _tuned(f"semisup@{method}-{fraction}", grid, one, nets, counts)


def _tuned(stage: str, grid: list[Training], one: Training, nets: int, counts: Counts) -> Work:
    """Every setting on one label subset, then one of them, the longest until it is known."""
    rest = [replace(one, nets=nets - 1)] if nets > 1 else []
    tried = sum(setting.nets for setting in grid) * counts.validation
    embedded = ((one.network, tried + _examined(counts, nets)),)
    return Work(stage, (*grid, *rest), embedded=embedded)


def _finetune(params: Params, counts: Counts, fraction: str, size: str | None) -> Work:
    recipe = params.finetune
    override = recipe.overrides.get(fraction, FinetuneOverride())
    labels = counts.labels_of(fraction)
    batch_size = min(override.batch_size or recipe.batch_size, labels)
    layers = layers_of(params, fraction, size)
    nets = len(layers) * subsets_of(params, size) * recipe.initialisations
    training = Training(
        Network(params.pretrain.encoder),
        duration_in_steps(override.duration or recipe.duration, labels, batch_size),
        batch_size,
        recipe.views,
        recipe.optimizer,
        nets,
        precision=recipe.precision,
    )
    embedded = ((training.network, _examined(counts, nets)),)
    return Work(_stage_of("finetune", fraction, size), (training,), embedded=embedded)


def _stage_of(stage: str, fraction: str, size: str | None) -> str:
    return f"{stage}@{fraction}" if size is None else f"{stage}_size@{size}-{fraction}"


def _distill(params: Params, counts: Counts, fraction: str, which: str) -> Work:
    student: StudentParams = getattr(params.distill, which)
    teacher = Network(params.pretrain.encoder)
    return _taught(f"distill_{which}@{fraction}", params, counts, student, teacher, 1)


def _student(params: Params, counts: Counts, fraction: str, teacher: str | None, name: str) -> Work:
    stage = f"own_student@{name}-{fraction}"
    if teacher is not None:
        stage = f"student@{teacher}-{name}-{fraction}"
    taught_by = Network(of_size(params, teacher).pretrain.encoder)
    shares = len(label_shares_of(params))
    return _taught(stage, params, counts, student_of(params, name), taught_by, shares)


def _taught(
    stage: str,
    params: Params,
    counts: Counts,
    student: StudentParams,
    teacher: Network,
    lessons: int,
) -> Work:
    """Students of one kind, each in so many lessons."""
    recipe = params.distill
    nets = (student.seeds or params.finetune.seeds) * lessons
    batch_size = min(recipe.batch_size, counts.train)
    training = Training(
        Network(student.encoder or params.pretrain.encoder),
        duration_in_steps(student.duration, counts.train, batch_size),
        batch_size,
        recipe.views,
        recipe.optimizer,
        nets,
        taught_by=teacher if recipe.teacher_views == 0 else None,
        precision=recipe.precision,
    )
    ahead = recipe.teacher_views * counts.train * nets
    return Work(
        stage,
        (training,),
        embedded=((training.network, _examined(counts, nets)),),
        answered=((teacher, recipe.views, ahead),) if ahead else (),
    )


def _examined(counts: Counts, nets: int) -> int:
    """Images that finished nets are scored on."""
    return nets * (counts.validation + counts.test)
