"""params.yaml: every value a run may vary, read and checked before anything runs.

Here is what concerns several sections; each section's own types are in `stages/sections`. They are
frozen and refuse unknown keys, so a misspelt key is an error and not a default. Stages read their
section once, in `main`; inner code takes plain arguments.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stages.errors import UserError
from stages.sections.data import DataParams
from stages.sections.kinds import Section
from stages.sections.labels import FinetuneParams, ProbeParams, SupervisedParams
from stages.sections.networks import SMALLEST_IMAGE, encoder_name
from stages.sections.pretraining import PretrainParams
from stages.sections.runtime import ReportParams, RuntimeParams
from stages.sections.students import DistillParams, SemisupParams, SizesParams
from stages.sections.transfer import TransferParams
from stages.sections.views import EvaluationParams

PARAMS_FILE = Path("params.yaml")


class Params(Section):
    """All of params.yaml."""

    profile: Annotated[str, Field(description="the profile these values started from")]
    data: DataParams
    pretrain: PretrainParams
    evaluation: EvaluationParams = EvaluationParams()
    probe: ProbeParams
    supervised: SupervisedParams
    finetune: FinetuneParams
    distill: DistillParams
    semisup: SemisupParams = SemisupParams()
    sizes: SizesParams = SizesParams()
    transfer: TransferParams
    report: ReportParams
    runtime: RuntimeParams

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        deepest = self.pretrain.head.depth
        if max(self.finetune.layers) > deepest:
            raise ValueError(
                f"finetune.layers names layer {max(self.finetune.layers)}, "
                f"but pretrain.head.depth is {deepest}"
            )
        if self.distill.teacher_layer not in self.finetune.layers:
            raise ValueError(
                f"distill.teacher_layer ({self.distill.teacher_layer}) must be one of "
                f"finetune.layers {self.finetune.layers}"
            )
        for fraction in self.finetune.overrides:
            layers = self.finetune.layers_at(fraction)
            where = f"finetune.overrides.{fraction}.layers {layers}"
            if not set(layers) <= set(self.finetune.layers):
                raise ValueError(f"{where} must be among finetune.layers {self.finetune.layers}")
            if self.distill.teacher_layer not in layers:
                raise ValueError(
                    f"{where} must hold distill.teacher_layer ({self.distill.teacher_layer})"
                )
        for name, student in (("same", self.distill.same), ("small", self.distill.small)):
            if student.seeds is not None and student.seeds > self.finetune.seeds:
                raise ValueError(
                    f"distill.{name}.seeds ({student.seeds}) is above finetune.seeds "
                    f"({self.finetune.seeds}): each student needs its teacher"
                )
        small, same = self.distill.small.seeds, self.distill.same.seeds or self.finetune.seeds
        if (small or self.finetune.seeds) > same:
            raise ValueError(
                f"distill.small needs a self-distilled teacher per seed: {small} seeds asked for, "
                f"distill.same has {same}"
            )
        return self

    @model_validator(mode="after")
    def _decoded_where_views_are_made(self) -> Self:
        if self.pretrain.decode_on == "gpu" and self.runtime.views_on == "cpu":
            raise ValueError("pretrain.decode_on gpu needs the views there: runtime.views_on auto")
        return self

    @model_validator(mode="after")
    def _batch_can_be_split(self) -> Self:
        share = self.pretrain.batch_size // self.runtime.world_size
        together, images = self.pretrain.batch_norm_images, self.runtime.micro_batch
        if together is not None and share % together:
            raise ValueError(
                f"pretrain.batch_norm_images ({together}) must divide the {share} images of a "
                "process's step"
            )
        if not isinstance(images, int) or images >= share:
            return self
        if together is None:
            raise ValueError(
                f"runtime.micro_batch {images} splits a batch of {share} images that batch norm "
                "takes as one: say over how many it is (pretrain.batch_norm_images), or save "
                "memory with runtime.recompute, which keeps it over the whole batch"
            )
        if share % images or images % together:
            raise ValueError(
                f"runtime.micro_batch ({images}) must divide the {share} images of a process's "
                f"step and be a multiple of pretrain.batch_norm_images ({together})"
            )
        return self

    @model_validator(mode="after")
    def _sizes_are_of_this_study(self) -> Self:
        sizes, asked = self.sizes, self.finetune.label_fractions
        for name, seeds in (("semisup", self.semisup.seeds), ("sizes", sizes.seeds)):
            if seeds is not None and seeds > self.finetune.seeds:
                raise ValueError(
                    f"{name}.seeds ({seeds}) is above finetune.seeds ({self.finetune.seeds}): each "
                    "needs its label subset"
                )
        if others := sorted(set(sizes.label_fractions) - set(asked)):
            raise ValueError(
                f"sizes.label_fractions names {', '.join(others)}, not in finetune.label_fractions"
            )
        own = encoder_name(self.pretrain.encoder)
        if own in sizes.encoders:
            raise ValueError(f"sizes.encoders names {own}, which is pretrain.encoder already")
        if sizes.encoders and self.pretrain.init_from is not None:
            raise ValueError(
                "sizes.encoders are pretrained here, and pretrain.init_from takes a network over "
                "instead: write sizes.encoders: []"
            )
        return self

    @model_validator(mode="after")
    def _fractions_are_asked_for(self) -> Self:
        if self.profile.startswith("imagenet"):  # a part of their fractions may be left out
            return self
        # Overrides of other fractions may stay: -S finetune.label_fractions='[0.01]' is one edit.
        for fraction in sorted(set(self.finetune.label_lists) - set(self.finetune.label_fractions)):
            raise ValueError(f"finetune.label_lists names {fraction}, not in label_fractions")
        return self

    @model_validator(mode="after")
    def _images_fill_the_stem(self) -> Self:
        views = {
            "pretrain.views": self.pretrain.views,
            "finetune.views": self.finetune.views,
            "distill.views": self.distill.views,
            **{f"supervised.views_grid.{i}": v for i, v in enumerate(self.supervised.views_grid)},
            **({"probe.sgd.views": self.probe.sgd.views} if self.probe.sgd else {}),
            "semisup.weak_views": self.semisup.weak_views,
            "semisup.strong_views": self.semisup.strong_views,
        }
        sizes = {f"{where}.size": seen.size for where, seen in views.items() if seen.size}
        for name, encoder in (
            ("pretrain.encoder", self.pretrain.encoder),
            ("distill.same.encoder", self.distill.same.encoder),
            ("distill.small.encoder", self.distill.small.encoder),
        ):
            for where, size in {"data.image_size": self.data.image_size, **sizes}.items():
                if encoder and size < SMALLEST_IMAGE[encoder.stem]:
                    raise ValueError(
                        f"{where} ({size} pixels) is too small for {name}: stem {encoder.stem} "
                        f"needs {SMALLEST_IMAGE[encoder.stem]} or more"
                    )
        return self


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, or holds values that can't be used; every
            problem is listed with its key, what was written and what is allowed.
    """
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing here ({path.absolute().parent}).\n"
            "  Run from the project's root, or write one: python -m pipeline profile quick"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if written is None:
        raise UserError(f"{path} is empty.\n  Write one: python -m pipeline profile quick")
    return check_params(written, str(path))


def check_params(written: Any, name: str = "params.yaml") -> Params:
    """Params from parsed YAML, or a UserError that lists every problem in it."""
    try:
        return Params.model_validate(written)
    except ValidationError as error:
        lines = "\n".join(f"  {_line(problem)}" for problem in error.errors())
        raise UserError(f"{name} can't be used:\n{lines}") from None


def _line(problem: ErrorDetails) -> str:
    """One problem in params.yaml: where, what, and what was written."""
    where = ".".join(str(key) for key in problem["loc"]) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        return f"{where}: no such key{_meant(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{where}: is missing"
    shown = problem["input"]
    wrote = "" if isinstance(shown, dict | BaseModel) else f" (you wrote {shown!r})"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{wrote}"


def _meant(location: Sequence[int | str]) -> str:
    """The keys that the section does know, so that a misspelling is seen at once."""
    section: Any = Params
    for key in location[:-1]:
        fields = getattr(section, "model_fields", {})
        if key not in fields:
            return ""
        section = fields[key].annotation
    known = ", ".join(getattr(section, "model_fields", {}))
    return f"; known here: {known}" if known else ""
