"""The methods of the label-fraction study: their fixed order, names and colours.

The order is the report's: first what needs no unlabelled image, then what uses them. It is fixed,
so that a reader finds a method in the same place whatever came out.
"""

from dataclasses import dataclass
from typing import Literal

from stages.params import Params

Marker = Literal["circle", "square", "diamond", "up", "down"]


@dataclass(frozen=True)
class Method:
    """One row of the table and one line of the plot."""

    name: str  # as in metrics/*.json
    title: str
    short: str
    uses_unlabelled: bool
    colour: str  # a CSS variable of style.css, without the dashes
    marker: Marker
    dash: str = ""  # SVG stroke-dasharray; colour never is the only difference


_RANDOM_LINEAR = Method(
    "random_linear",
    "Untrained net, linear probe",
    "untrained",
    False,
    "random",
    "circle",
)
_RANDOM_KNN = Method(
    "random_knn",
    "Untrained net, kNN",
    "untr. kNN",
    False,
    "random",
    "square",
    "2 4",
)
_SUPERVISED = Method(
    "supervised",
    "Supervised from scratch, tuned",
    "supervised",
    False,
    "supervised",
    "square",
)
_LINEAR = Method("linear_probe", "Pretrained, linear probe", "linear", True, "linear", "diamond")
_KNN = Method("knn", "Pretrained, kNN", "kNN", True, "knn", "down", "2 4")
_SAME = Method("distill_same", "Self-distilled, same size", "self-dist.", True, "same", "diamond")
_SMALL = Method(
    "distill_small",
    "Distilled into a smaller net",
    "small",
    True,
    "small",
    "down",
    "7 3",
)
_SEMISUP = {
    "pseudo_label": Method(
        "pseudo_label",
        "Pseudo-Label, from scratch, tuned",
        "pseudo-l.",
        True,
        "pseudo",
        "up",
        "2 4",
    ),
    "fixmatch": Method(
        "fixmatch", "FixMatch, from scratch, tuned", "FixMatch", True, "fixmatch", "square", "7 3"
    ),
}
_LAYER_MARKERS: tuple[Marker, ...] = ("up", "circle", "down", "square", "diamond")


def finetuned(layer: int) -> Method:
    """Fine-tuning with the classifier on layer `layer` of the head; 0 is h."""
    where = "h (head layer 0)" if layer == 0 else f"head layer {layer}"
    return Method(
        name=f"finetune_layer_{layer}",
        title=f"Fine-tuned from {where}",
        short=f"layer {layer}",
        uses_unlabelled=True,
        colour=f"layer{layer}",
        marker=_LAYER_MARKERS[layer % len(_LAYER_MARKERS)],
    )


def student(label_share: float) -> Method:
    """A student of the grid of sizes, by the weight of true labels beside its teacher's."""
    true = f" and true labels ({label_share:g})" if label_share else ""
    return Method(
        name=f"student_{label_share:g}_labels" if label_share else "student",
        title=f"Student on soft labels{true}",
        short="student",
        uses_unlabelled=True,
        colour="small",
        marker="down",
    )


def methods_of(params: Params) -> list[Method]:
    """Every method these params ask for, in the report's order."""
    layers = [finetuned(layer) for layer in sorted(params.finetune.layers)]
    return [
        _RANDOM_LINEAR,
        _RANDOM_KNN,
        _SUPERVISED,
        *(method for name, method in _SEMISUP.items() if name in params.semisup.methods),
        _LINEAR,
        _KNN,
        *layers,
        _SAME,
        _SMALL,
    ]


def same_net(method: Method, params: Params) -> bool:
    """Whether the method ends in a net of the pretrained size: only then is a gain a gain."""
    if method.name == "distill_small":
        return False
    encoder = params.distill.same.encoder
    return method.name != "distill_same" or encoder is None or encoder == params.pretrain.encoder


def is_pretrained(method: Method) -> bool:
    """Whether the method starts from contrastive pretraining: what the gain is asked of."""
    return method.uses_unlabelled and method.name not in _SEMISUP


def sized_record(method: Method, size: str, label_fraction: str) -> str:
    """The record of a method for a net of another size."""
    return f"sizes/{size}/{record_name(method, label_fraction)}"


def record_name(method: Method, label_fraction: str) -> str:
    """The record a method's numbers are in: metrics/<this>.json."""
    if method.name.startswith("finetune_layer_"):
        return f"finetune/{label_fraction}"
    if method.name in _SEMISUP:
        return f"semisup/{method.name}/{label_fraction}"
    if method.name in {"supervised", "distill_same", "distill_small"}:
        return f"{method.name}/{label_fraction}"
    return f"probe/{label_fraction}"


def fraction_title(label_fraction: str) -> str:
    """'10 per class' or '1%'."""
    if label_fraction.endswith("_per_class"):
        return label_fraction.replace("_", " ")
    return f"{float(label_fraction) * 100:g}%"


def labels_phrase(label_fraction: str) -> str:
    """How the sentence speaks of a label fraction: '10 labels per class', '1% of the labels'."""
    if label_fraction.endswith("_per_class"):
        count = label_fraction.removesuffix("_per_class")
        return f"{count} label{'' if count == '1' else 's'} per class"
    return f"{fraction_title(label_fraction)} of the labels"
