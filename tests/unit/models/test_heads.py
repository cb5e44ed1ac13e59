import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.errors import UserError
from stages.models.heads import LinearClassifier, ProjectionHead


def features(n_images: int, width: int) -> Tensor:
    return torch.randn(n_images, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_taps_are_h_and_every_layer(depth: int):
    head = ProjectionHead(16, 24, 8, depth)
    taps = head.eval().taps(features(5, 16))
    assert [tap.shape[1] for tap in taps] == [16, *[24] * (depth - 1), 8] == head.widths
    torch.testing.assert_close(taps[-1], head(features(5, 16)), rtol=0, atol=0)
    assert all(tap.min() >= 0 for tap in taps[1:-1])


@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
def test_first_layers_give_the_tap_of_that_number(n_layers: int):
    head = ProjectionHead(16, 16, 8, 3).eval()
    h_BD = features(5, 16)
    torch.testing.assert_close(
        head.first_layers(n_layers)(h_BD), head.taps(h_BD)[n_layers], rtol=0, atol=0
    )


@pytest.mark.parametrize("n_layers", [-1, 4])
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(n_layers: int):
    with pytest.raises(UserError, match=rf"no layer {n_layers}.\n  Choose 0 .* to 3"):
        ProjectionHead(16, 16, 8, 3).first_layers(n_layers)


def test_only_the_last_layer_lacks_beta_and_none_has_a_bias():
    names = ProjectionHead(16, 16, 8, 3).state_dict()
    parameters = [name for name in names if "running" not in name]
    assert parameters == [
        "0.dense.weight",
        "0.norm.weight",
        "0.norm.bias",
        "1.dense.weight",
        "1.norm.weight",
        "1.norm.bias",
        "2.dense.weight",
        "2.norm.weight",
    ]


def test_a_layer_is_dense_then_norm_then_relu():
    head = ProjectionHead(16, 12, 8, 2).train()
    h_BD = features(32, 16)
    dense_BD = F.linear(h_BD, head[0].dense.weight)
    variance, mean = torch.var_mean(dense_BD, dim=0, correction=0)
    expected = F.relu((dense_BD - mean) * torch.rsqrt(variance + 1e-5))
    torch.testing.assert_close(head.taps(h_BD)[1], expected, rtol=1e-4, atol=1e-5)


def test_dense_weights_start_with_deviation_a_hundredth():
    torch.manual_seed(0)
    head = ProjectionHead(256, 256, 128, 2)
    linear = LinearClassifier(256, 100)
    for weight in (head[0].dense.weight, head[1].dense.weight, linear.weight):
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert linear.bias.abs().max() == 0


def test_zero_init_gives_every_class_the_same_logit():
    linear = LinearClassifier(16, 5, zero_init=True)
    assert linear(features(3, 16)).abs().max() == 0


def test_a_head_without_layers_is_refused():
    with pytest.raises(UserError, match="at least 1 layer"):
        ProjectionHead(16, 16, 8, 0)
