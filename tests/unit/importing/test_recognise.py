"""The network behind names and shapes; no weights are needed for that."""

import json
from pathlib import Path

import pytest
import torch

from stages.errors import UserError
from stages.importing.naming import Naming, _by_tf1_name, _by_tf2_key, _renumbered
from stages.importing.network import Network, Structure
from stages.importing.recognise import recognise
from stages.models.heads import LinearClassifier
from stages.models.official_names import official_variables
from stages.models.simclr import build_encoder, build_simclr

FILE = Path("model.ckpt-1")
V2 = [(d, w, sk) for d in (50, 101, 152) for w in (1, 2) for sk in (False, True)] + [(152, 3, True)]


def shapes_of(
    attribute: str,
    depth: int,
    width: float,
    sk: bool,
    *,
    stem: str = "imagenet",
    head_depth: int = 3,
    out_dim: int = 128,
    sk_ratio: float = 0.0625,
) -> dict[str, tuple[int, ...]]:
    """The official shapes of a network with 1000 classes on h."""
    with torch.device("meta"):
        encoder = build_encoder(depth, width, sk_ratio if sk else 0.0, stem)
        simclr = build_simclr(encoder, max(head_depth, 1), out_dim=out_dim)
        linear = LinearClassifier(encoder.feature_dim, 1000)
    state = dict(simclr.state_dict()) | {f"linear.{n}": v for n, v in linear.state_dict().items()}
    variables = official_variables(depth, sk=sk, stem=stem, head_depth=head_depth)
    return {getattr(v, attribute): tuple(v.to_official(state[v.ours]).shape) for v in variables}


def found(shapes: dict[str, tuple[int, ...]], expected=_by_tf1_name) -> Network:
    return recognise([Naming("names", {name: name for name in shapes}, expected)], shapes, FILE)[0]


@pytest.mark.parametrize(("depth", "width", "sk"), V2)
def test_each_of_the_papers_thirteen_networks_is_told_by_its_tf1_names(
    depth: int, width: int, sk: bool
):
    network = found(shapes_of("tf1_name", depth, width, sk))
    assert network.encoder == {
        "depth": depth,
        "width_multiplier": width,
        "sk_ratio": 0.0625 if sk else 0.0,
        "stem": "imagenet",
    }
    assert network.head == {"depth": 3, "hidden_width": 1.0, "out_dim": 128}
    assert (network.channels, network.classes) == (3, 1000)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("head_depth", [0, 2])
def test_the_first_papers_three_networks_with_and_without_their_head(width: int, head_depth: int):
    network = found(shapes_of("tf1_name", 50, width, sk=False, head_depth=head_depth))
    assert (network.encoder["depth"], network.encoder["width_multiplier"]) == (50, width)
    assert network.structure.head_layers == head_depth
    assert network.head_widths == [2048 * width, 2048 * width, 128][: head_depth + 1]


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize(
    ("depth", "sk"), [(18, False), (18, True), (34, False), (50, False), (50, True), (200, True)]
)
def test_depth_kernels_and_stem_are_told_by_tf2_keys(depth: int, sk: bool, stem: str):
    network = found(shapes_of("tf2_key", depth, 1, sk, stem=stem), _by_tf2_key)
    assert network.structure == Structure(depth, sk, stem)


@pytest.mark.parametrize("width", [0.0625, 0.3, 0.35, 1.5])
def test_a_fractional_width_gives_the_same_channels(width: int):
    shapes = shapes_of("tf1_name", 50, width, sk=True, stem="small")
    network = found(shapes)
    assert (
        shapes_of("tf1_name", 50, network.encoder["width_multiplier"], sk=True, stem="small")
        == shapes
    )


@pytest.mark.parametrize("sk_ratio", [0.0625, 0.1, 0.25, 1 / 3])
def test_another_ratio_of_selective_kernels_gives_the_same_channels(sk_ratio: float):
    shapes = shapes_of("tf1_name", 50, 1, sk=True, sk_ratio=sk_ratio)
    again = found(shapes).encoder["sk_ratio"]
    assert shapes_of("tf1_name", 50, 1, sk=True, sk_ratio=again) == shapes


def test_full_width_names_that_the_official_code_printed(golden_dir: Path):
    nets = json.loads((golden_dir / "variable_names.json").read_text())["models"]
    assert nets
    for name, rows in nets.items():
        depth, width, kernels = name.split("_")
        expected = (int(depth[1:]), float(width[:-1]), kernels == "sk1")
        for column, naming in ((0, _by_tf2_key), (2, _by_tf1_name)):
            network = found({row[column]: tuple(row[3]) for row in rows}, naming)
            structure = network.structure
            assert (structure.depth, network.encoder["width_multiplier"], structure.sk) == expected


def refusal(shapes: dict[str, tuple[int, ...]]) -> str:
    with pytest.raises(UserError) as refused:
        found(shapes)
    return str(refused.value)


def test_what_does_not_match_is_listed():
    shapes = shapes_of("tf1_name", 18, 1, sk=False, stem="small")
    del shapes["base_model/conv2d_3/kernel"]
    shapes["base_model/conv2d_77/kernel"] = (3, 3, 64, 64)
    shapes["base_model/conv2d_4/kernel"] = (5, 5, 64, 64)
    said = refusal(shapes)
    assert "nearest is: ResNet-18" in said
    assert "missing (1):\n    base_model/conv2d_3/kernel\n" in said
    assert "not part of it (1):\n    base_model/conv2d_77/kernel\n" in said
    assert "base_model/conv2d_4/kernel: [5, 5, 64, 64], expected [3, 3, 64, 64]" in said


def test_a_long_list_is_cut_and_counted():
    shapes = shapes_of("tf1_name", 18, 1, sk=False, stem="small")
    shapes |= {f"base_model/other_{n}": (1,) for n in range(33)}
    assert "not part of it (33):" in refusal(shapes)
    assert "and 13 more" in refusal(shapes)


@pytest.mark.parametrize("shape", [(1, 1, 64, 2**40), (1, 1, 64, 0), (), (512,)])
def test_a_width_that_no_network_has_is_refused(shape: tuple[int, ...]):
    shapes = shapes_of("tf1_name", 50, 1, sk=False)
    last_group = next(
        v.tf1_name
        for v in official_variables(50, sk=False)
        if v.ours == "encoder.groups.3.0.conv1.weight"
    )
    assert "widths can't be told" in refusal({**shapes, last_group: shape})


def test_a_file_with_hardly_anything_of_a_network_is_refused():
    assert "missing (" in refusal({"base_model/conv2d/kernel": (7, 7, 3, 64)})


def test_layers_are_numbered_by_their_order():
    names = ["resnet/conv2d_fixed_padding_21/conv2d_21/kernel", "resnet/conv2d_9/kernel"]
    assert _renumbered(names) == [
        "resnet/conv2d_fixed_padding_0/conv2d_1/kernel",
        "resnet/conv2d_0/kernel",
    ]
    assert _renumbered(["nl_2/sync_batch_normalization_5/gamma"]) == _renumbered(
        ["nl_2/batch_normalization/gamma"]
    )
