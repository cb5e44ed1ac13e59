"""A student learns the teacher's soft labels on all training images (section 2, eq. 2 and 3).

Two students, as in the paper: `same`, of the teacher's size (self-distillation), and `small`,
whose teacher is the self-distilled network.
"""

import argparse
import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

from stages.data.store import ImageStore
from stages.errors import run_stage
from stages.evaluation.classify import import_ahead
from stages.evaluation.features import state_digest
from stages.models.simclr import Classifier, SimCLR, build_classifier
from stages.params import Params, StudentParams, load_params
from stages.training.classifier import Examiner, Schooling, labelled_keys, open_split
from stages.training.fingerprint import fingerprint
from stages.training.outcomes import Trained, conclude
from stages.training.products import build_from, read_product, seeded
from stages.training.recipes import start_runtime, view_recipe
from stages.training.runtime import Runtime
from stages.training.side_by_side import side_by_side
from stages.training.steps import Answers, distill_step
from stages.training.teachers import answers_over_views, answers_to_the_same_view

PRETRAINED = Path("artifacts/pretrain")


def main() -> None:
    begun = time.perf_counter()
    arguments = parse_arguments()
    params = load_params()
    runtime = start_runtime(params)
    examiner = Examiner.open(params, runtime)
    student: StudentParams = getattr(params.distill, arguments.student)
    item = f"distill_{arguments.student}/{arguments.fraction}"
    tasks = [
        partial(distill, item, params, arguments.fraction, arguments.student, seed)
        for seed in range(student.seeds or params.finetune.seeds)
    ]
    trained = side_by_side(tasks, runtime, params.runtime.trainings_at_once, import_ahead)
    conclude(item, trained, examiner, begun=begun, params=params.distill.model_dump())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.distill", description=__doc__)
    parser.add_argument("--student", required=True, choices=["same", "small"])
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    return parser.parse_args()


def distill(
    item: str, params: Params, fraction: str, which: str, seed: int, runtime: Runtime
) -> Trained:
    """Train one student; its teacher learnt from the same label subset."""
    distilling = params.distill
    student: StudentParams = getattr(distilling, which)
    store = unlabelled_images(params, fraction, seed)
    teacher, card = read_product(teacher_folder(params, fraction, which, seed))
    assert isinstance(teacher, Classifier)
    seeded(seed)
    model, architecture = start_student(params, student, teacher, card["architecture"])
    schooling = Schooling(
        duration=student.duration,
        warmup=distilling.warmup,
        batch_size=distilling.batch_size,
        views=distilling.views,
        optimizer=distilling.optimizer,
        seed=seed,
    )
    state = schooling.train(
        f"{item} seed {seed}",
        runtime.place(model),
        store,
        distill_step(
            runtime,
            answers_of(runtime.place(teacher), store, params, student, seed, runtime),
            student.temperature,
            distilling.label_share,
            distilling.precision,
            scale_by_temperature_squared=distilling.scale_by_temperature_squared,
        ),
        params,
        runtime,
        Path("runs") / item / f"seed-{seed}",
        fingerprint(
            schooling=str(schooling),
            student=student.model_dump(),
            teacher_views=distilling.teacher_views,
            precision=distilling.precision,
            label_share=distilling.label_share,
            scale_by_temperature_squared=distilling.scale_by_temperature_squared,
            data=store.fingerprint,
            shuffle_shards=params.data.shuffle_shards,
            teacher=card["weights_sha256"],
            start=state_digest(model),
            image_size=params.data.image_size,
        ),
    )
    return Trained(
        model,
        architecture,
        state.curve,
        {
            "method": f"distill_{which}",
            "label_fraction": fraction,
            "labels": len(labelled_keys(fraction, seed)),
            "seed": seed,
            "seconds": round(state.seconds, 2),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "images": store.n_images,
        },
        folder=f"seed-{seed}",
    )


def answers_of(
    teacher: Classifier,
    store: ImageStore,
    params: Params,
    student: StudentParams,
    seed: int,
    runtime: Runtime,
) -> Answers:
    """The soft labels: of the view at hand, or made once over several."""
    if params.distill.teacher_views == 0:
        return answers_to_the_same_view(teacher, runtime, params.distill.precision)
    return answers_over_views(
        teacher,
        store,
        view_recipe(params.distill.views, params.data.image_size),
        params.distill.teacher_views,
        student.temperature,
        seed,
        runtime,
    )


def teacher_folder(params: Params, fraction: str, which: str, seed: int) -> Path:
    """The fine-tuned network teaches `same`, the self-distilled one teaches `small`."""
    if which == "small":
        return Path(f"artifacts/distill_same/{fraction}/seed-{seed}")
    return Path(f"artifacts/finetune/{fraction}/layer-{params.distill.teacher_layer}/seed-{seed}")


def unlabelled_images(params: Params, fraction: str, seed: int) -> ImageStore:
    """All training images; only those of the label subset keep their class, and only if used."""
    store = open_split("train", params)
    named = set(labelled_keys(fraction, seed)) if params.distill.label_share > 0 else set()
    return store.with_labels_of(named)


def start_student(
    params: Params, student: StudentParams, teacher: Classifier, teachers: dict[str, Any]
) -> tuple[Classifier, dict[str, Any]]:
    """The student with its first weights, and its architecture."""
    if student.start == "teacher":
        return copy.deepcopy(teacher), teachers
    if student.start == "pretrained":
        pretrained, _ = read_product(PRETRAINED)
        assert isinstance(pretrained, SimCLR)
        model = build_classifier(
            pretrained, from_layer=teachers["from_layer"], n_classes=teachers["classes"]
        )
        return model, teachers
    architecture = {**teachers, "from_layer": 0}
    if student.encoder is not None:
        architecture["encoder"] = student.encoder.model_dump()
    model = build_from(architecture)
    assert isinstance(model, Classifier)
    return model, architecture


if __name__ == "__main__":
    run_stage(main)
