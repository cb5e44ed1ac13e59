import pytest
import torch
import torch.nn.functional as F

from stages.models.blocks import Conv, SelectiveKernel, average_pool_2x2


def test_stride_1_average_leaves_padding_out():
    x = torch.tensor([[[[1.0, 3.0], [5.0, 11.0]]]])
    assert average_pool_2x2(x, 1).tolist() == [[[[5.0, 7.0], [8.0, 11.0]]]]


def test_stride_2_average_counts_padding_where_the_size_is_odd():
    x = torch.ones(1, 1, 3, 3)
    assert average_pool_2x2(x, 2).tolist() == [[[[1.0, 0.5], [0.5, 0.25]]]]
    assert average_pool_2x2(x[..., :2, :2], 2).tolist() == [[[[1.0]]]]


def test_selective_kernel_mixes_two_streams_by_a_softmax():
    torch.manual_seed(0)
    layer = SelectiveKernel(6, 8, 2, 0.0625).eval()
    x = torch.rand(3, 6, 8, 8)
    streams = F.relu(layer.norm(layer.conv(x)))
    first, second = streams[:, :8], streams[:, 8:]
    image = (first + second).mean(dim=(2, 3), keepdim=True)
    scores = layer.select(F.relu(layer.squeeze_norm(layer.squeeze(image))))
    weights = torch.softmax(torch.stack([scores[:, :8], scores[:, 8:]]), dim=0)
    torch.testing.assert_close(layer(x), first * weights[0] + second * weights[1])
    assert layer.squeeze.out_channels == 32


@pytest.mark.parametrize(("width", "squeezed"), [(64, 32), (512, 32), (1024, 64), (1536, 96)])
def test_selective_kernel_squeezes_to_at_least_32(width: int, squeezed: int):
    with torch.device("meta"):
        assert SelectiveKernel(1, width, 1, 0.0625).squeeze.out_channels == squeezed


def test_convolutions_start_with_the_deviation_of_their_fan_in():
    torch.manual_seed(0)
    weight = Conv(64, 128, 3).weight.detach()
    deviation = (64 * 9) ** -0.5
    assert weight.std().item() == pytest.approx(deviation, rel=0.01)
    assert weight.abs().max().item() <= 2 * deviation / 0.87962566 + 1e-7
    assert weight.abs().max().item() > 1.9 * deviation / 0.87962566
