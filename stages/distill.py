"""A student learns the teacher's soft labels on all training images (section 2, eq. 2 and 3).

Two students, as in the paper: `same`, of the teacher's size (self-distillation), and `small`,
whose teacher is the self-distilled network. In the study of sizes a student of any size learns from
a fine-tuned network of any size, without and with the true labels.
"""

import argparse
import copy
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stages.data.store import ImageStore
from stages.errors import run_stage
from stages.evaluation.classify import import_ahead
from stages.evaluation.features import state_digest
from stages.models.simclr import Classifier, SimCLR, build_classifier
from stages.params import Params, load_params
from stages.sections.students import StudentParams
from stages.training.classifier import Examiner, Schooling, labelled_keys, open_split
from stages.training.fingerprint import fingerprint
from stages.training.outcomes import Trained, conclude
from stages.training.products import build_from, read_product, seeded
from stages.training.progress_file import expect_trainings
from stages.training.recipes import start_runtime, view_recipe
from stages.training.runtime import Runtime
from stages.training.side_by_side import side_by_side
from stages.training.sizes import (
    item_of,
    label_shares_of,
    name_of,
    of_size,
    pretrained_of,
    student_of,
)
from stages.training.sole import sole_trainer
from stages.training.steps import Answers, distill_step
from stages.training.teachers import answers_over_views, answers_to_the_same_view


@dataclass(frozen=True)
class Lesson:
    """Who learns what from whom.

    Attributes:
        item: the stage's results: "distill_same/0.01".
        method: the name of the student's row there.
        student: what it is and how long it learns.
        teachers: folder of the teachers' products, one for each label subset.
        pretrained: for a student that starts from it.
        label_share: weight of true labels.
        facts: more for the row of the results.
    """

    item: str
    method: str
    student: StudentParams
    teachers: Path
    pretrained: Path
    label_share: float
    facts: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    begun = time.perf_counter()
    arguments = parse_arguments()
    params, fraction = load_params(), arguments.fraction
    if arguments.student in {"same", "small"}:
        lessons = [lesson_of_the_chain(params, arguments.student, fraction)]
    else:
        lessons = lessons_of_the_sizes(params, arguments.student, arguments.teacher, fraction)
    runtime = start_runtime(params)
    examiner = Examiner.open(params, runtime)
    tasks = [
        partial(distill, params, fraction, lesson, seed)
        for lesson in lessons
        for seed in range(lesson.student.seeds or params.finetune.seeds)
    ]
    expect_trainings(len(tasks))
    item, learnt = lessons[0].item, params.distill.model_dump()
    with sole_trainer(Path("runs") / item, runtime):
        trained = side_by_side(tasks, runtime, params.runtime.trainings_at_once, import_ahead)
        conclude(item, trained, examiner, begun=begun, params=learnt)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.distill", description=__doc__)
    parser.add_argument("--student", required=True, help="same, small, or one of sizes.students")
    parser.add_argument("--teacher", help="of sizes.encoders, for a student of sizes.students")
    parser.add_argument("--fraction", required=True, help="one of finetune.label_fractions")
    return parser.parse_args()


def lesson_of_the_chain(params: Params, which: str, fraction: str) -> Lesson:
    """The fine-tuned network teaches `same`, the self-distilled one teaches `small`."""
    item = f"distill_{which}/{fraction}"
    teachers = Path(f"artifacts/distill_same/{fraction}")
    if which == "same":
        teachers = finetuned_of(params, fraction, None)
    student: StudentParams = getattr(params.distill, which)
    share = params.distill.label_share
    return Lesson(item, f"distill_{which}", student, teachers, pretrained_of(None), share)


def lessons_of_the_sizes(
    params: Params, name: str, teacher: str | None, fraction: str
) -> list[Lesson]:
    """A fine-tuned network of some size teaches a student, once for each share of true labels."""
    of_size(params, teacher)  # is there such a size
    student = student_of(params, name)
    return [
        Lesson(
            item=f"students/{teacher or 'own'}/{name}/{fraction}",
            method=f"student_{share:g}_labels" if share else "student",
            student=student,
            teachers=finetuned_of(params, fraction, teacher),
            pretrained=pretrained_of(teacher),
            label_share=share,
            facts={"student": name, "teacher": name_of(params, teacher), "label_share": share},
        )
        for share in label_shares_of(params)
    ]


def finetuned_of(params: Params, fraction: str, size: str | None) -> Path:
    item = item_of("finetune", fraction, size)
    return Path(f"artifacts/{item}/layer-{params.distill.teacher_layer}")


def distill(params: Params, fraction: str, lesson: Lesson, seed: int, runtime: Runtime) -> Trained:
    """Train one student; its teacher learnt from the same label subset."""
    distilling, student = params.distill, lesson.student
    store = unlabelled_images(params, fraction, seed, lesson.label_share)
    teacher, card = read_product(lesson.teachers / f"seed-{seed}")
    assert isinstance(teacher, Classifier)
    seeded(seed)
    model, architecture = start_student(lesson, teacher, card["architecture"])
    schooling = Schooling(
        duration=student.duration,
        warmup=distilling.warmup,
        batch_size=distilling.batch_size,
        views=distilling.views,
        optimizer=distilling.optimizer,
        seed=seed,
    )
    name = f"{lesson.method}-seed-{seed}"
    state = schooling.train(
        f"{lesson.item} {lesson.method} seed {seed}",
        runtime.place(model),
        store,
        distill_step(
            runtime,
            answers_of(runtime.place(teacher), store, params, student, seed, runtime),
            student.temperature,
            lesson.label_share,
            distilling.precision,
            scale_by_temperature_squared=distilling.scale_by_temperature_squared,
        ),
        params,
        runtime,
        Path("runs") / lesson.item / name,
        fingerprint(
            schooling=str(schooling),
            student=student.model_dump(),
            teacher_views=distilling.teacher_views,
            precision=distilling.precision,
            label_share=lesson.label_share,
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
            "method": lesson.method,
            "label_fraction": fraction,
            "labels": len(labelled_keys(fraction, seed)),
            "seed": seed,
            "seconds": round(state.seconds, 2),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "images": store.n_images,
            **lesson.facts,
        },
        folder=f"seed-{seed}" if lesson.method.startswith("distill_") else name,
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


def unlabelled_images(params: Params, fraction: str, seed: int, label_share: float) -> ImageStore:
    """All training images; only those of the label subset keep their class, and only if used."""
    store = open_split("train", params)
    named = set(labelled_keys(fraction, seed)) if label_share > 0 else set()
    return store.with_labels_of(named)


def start_student(
    lesson: Lesson, teacher: Classifier, teachers: dict[str, Any]
) -> tuple[Classifier, dict[str, Any]]:
    """The student with its first weights, and its architecture."""
    student = lesson.student
    if student.start == "teacher":
        return copy.deepcopy(teacher), teachers
    if student.start == "pretrained":
        pretrained, _ = read_product(lesson.pretrained)
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
