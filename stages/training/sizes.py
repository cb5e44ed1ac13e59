"""The study of net sizes: the same stages for another encoder, and where they leave things."""

from pathlib import Path

from stages.errors import UserError
from stages.params import Params
from stages.sections.networks import encoder_name, encoder_named
from stages.sections.students import StudentParams


def of_size(params: Params, size: str | None) -> Params:
    """The params as if pretrain.encoder were the encoder of that name; None: as they are.

    Raises:
        UserError: sizes.encoders does not name it.
    """
    if size is None:
        return params
    if size not in params.sizes.encoders:
        raise UserError(
            f"there is no size {size} in params.yaml.\n"
            f"  sizes.encoders names: {', '.join(params.sizes.encoders) or 'none'}"
        )
    encoder = encoder_named(size, params.pretrain.encoder)
    pretrain = params.pretrain.model_copy(update={"encoder": encoder})
    return params.model_copy(update={"pretrain": pretrain})


def pretraining_of(size: str | None) -> str:
    """The name of what pretraining leaves for a size."""
    return "pretrain" if size is None else f"sizes/{size}/pretrain"


def pretrained_of(size: str | None) -> Path:
    """The product of pretraining for a size."""
    return Path("artifacts") / pretraining_of(size)


def item_of(stage: str, fraction: str, size: str | None) -> str:
    """The name of a stage's results: finetune/0.01, or sizes/r50_2x_sk1/finetune/0.01."""
    return f"{stage}/{fraction}" if size is None else f"sizes/{size}/{stage}/{fraction}"


def name_of(params: Params, size: str | None) -> str:
    """A size, or the name of pretrain.encoder among them."""
    return size or encoder_name(params.pretrain.encoder)


def subsets_of(params: Params, size: str | None) -> int:
    """Label subsets that a size is trained on."""
    fewer = None if size is None else params.sizes.seeds
    return fewer or params.finetune.seeds


def layers_of(params: Params, fraction: str, size: str | None) -> list[int]:
    """Layers of g to fine-tune from; of other sizes only the one that teaches."""
    return params.finetune.layers_at(fraction) if size is None else [params.distill.teacher_layer]


def student_of(params: Params, name: str) -> StudentParams:
    """A student of the study: as distill.small, with an encoder of its own.

    Raises:
        UserError: sizes.students does not name it.
    """
    sizes = params.sizes
    if name not in sizes.students:
        raise UserError(
            f"there is no student {name} in params.yaml.\n"
            f"  sizes.students names: {', '.join(sizes.students) or 'none'}"
        )
    encoder = encoder_named(name, params.pretrain.encoder)
    changed = {"encoder": encoder, "start": "scratch", "seeds": sizes.seeds}
    return params.distill.small.model_copy(update=changed)


def label_shares_of(params: Params) -> list[float]:
    """Weights of true labels that students are tried with."""
    return params.sizes.label_shares
