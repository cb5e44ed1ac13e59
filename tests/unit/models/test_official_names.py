import pytest
import torch

from stages.models.heads import LinearClassifier
from stages.models.official_names import in_tracking_order, official_variables
from stages.models.resnet import BLOCKS_PER_GROUP
from stages.models.simclr import build_encoder, build_simclr


@pytest.mark.parametrize("depth", BLOCKS_PER_GROUP)
@pytest.mark.parametrize("sk_ratio", [0, 0.0625])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("head_depth", [1, 2, 3, 4])
def test_every_weight_has_a_name_and_every_name_a_weight(
    depth: int, sk_ratio: float, stem, head_depth: int
):
    with torch.device("meta"):
        encoder = build_encoder(depth, 0.125, sk_ratio, stem)
        simclr = build_simclr(encoder, depth=head_depth)
        linear = LinearClassifier(encoder.feature_dim, 10)
    ours = [*simclr.state_dict(), *(f"linear.{name}" for name in linear.state_dict())]
    variables = official_variables(depth, sk=sk_ratio > 0, stem=stem, head_depth=head_depth)
    assert sorted(v.ours for v in variables) == sorted(ours)
    for other in ("tf2_key", "tf2_name", "tf1_name"):
        assert len({getattr(v, other) for v in variables}) == len(variables)


def test_a_network_without_heads_has_the_names_of_its_encoder():
    names = official_variables(18, sk=False, head_depth=0, supervised_head=False)
    assert {name.tf1_name.split("/")[0] for name in names} == {"base_model"}


@pytest.mark.parametrize("layout", ["conv", "dense", "vector"])
def test_layouts_turn_and_turn_back(layout: str):
    shape = {"conv": (3, 5, 2, 4), "dense": (2, 4), "vector": (4,)}[layout]
    ours_shape = {"conv": (4, 2, 3, 5), "dense": (4, 2), "vector": (4,)}[layout]
    variable = next(v for v in official_variables(18, sk=False) if v.layout == layout)
    official = torch.arange(torch.Size(shape).numel()).reshape(shape)
    ours = variable.to_ours(official)
    assert tuple(ours.shape) == ours_shape
    assert torch.equal(variable.to_official(ours), official)
    if layout == "conv":
        assert ours[3, 1, 2, 4] == official[2, 4, 1, 3]


def test_shortcuts_are_called_before_the_main_path_but_tracked_after_it_in_basic_blocks():
    called = official_variables(18, sk=False, supervised_head=False)
    first_block = [v.ours for v in called if v.ours.startswith("encoder.groups.0.0.")]
    assert first_block[0].endswith("shortcut.conv.weight")
    tracked = [v.ours for v in in_tracking_order(called) if v.ours in first_block]
    assert tracked[0].endswith("0.0.conv1.weight")
    assert sorted(tracked) == sorted(first_block)
