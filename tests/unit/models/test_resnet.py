import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.errors import UserError
from stages.models.batch_norm import BatchNorm
from stages.models.blocks import Conv
from stages.models.resnet import Recompute, ResNet, max_pool_same


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small(depth: int = 18, **kwargs) -> ResNet:
    torch.manual_seed(0)
    return ResNet(depth, 0.125, **kwargs)


@pytest.mark.parametrize(
    ("depth", "width", "feature_dim"),
    [(10, 0.25, 128), (18, 1, 512), (34, 2, 1024), (50, 1, 2048), (200, 0.5, 1024)],
)
def test_width_of_h(depth: int, width: float, feature_dim: int):
    with torch.device("meta"):
        assert ResNet(depth, width).feature_dim == feature_dim


@pytest.mark.parametrize(
    ("depth", "n_convs"),
    [(10, 13), (18, 21), (34, 37), (50, 53), (101, 104), (152, 155), (200, 203)],
)
def test_depth_counts_layers(depth: int, n_convs: int):
    """Depth less the classifier, and four shortcuts more."""
    with torch.device("meta"):
        encoder = ResNet(depth)
    assert sum(isinstance(part, Conv) for part in encoder.modules()) == n_convs


@pytest.mark.parametrize(
    ("stem", "sizes"),
    [
        ("imagenet", [32, 16, 16, 8, 4, 2]),
        ("small", [64, 64, 64, 32, 16, 8]),
        ("small_stride2", [32, 32, 32, 16, 8, 4]),
    ],
)
@pytest.mark.parametrize("sk_ratio", [0, 0.0625])
def test_sizes_along_the_way(stem, sizes: list[int], sk_ratio: float):
    encoder = small(50, stem=stem, sk_ratio=sk_ratio, in_channels=1).eval()
    outputs = encoder.features(images(2, 1, 64, 64))
    assert [outputs[name].shape[-1] for name in outputs if name != "h"] == sizes
    torch.testing.assert_close(encoder(images(2, 1, 64, 64)), outputs["h"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stem", "smallest"), [("imagenet", 32), ("small", 8), ("small_stride2", 16)]
)
def test_an_image_smaller_than_the_stem_allows_is_refused_by_name(stem, smallest: int):
    encoder = small(10, stem=stem).eval()
    assert encoder(images(1, 3, smallest, smallest)).shape == (1, 64)
    with pytest.raises(
        UserError, match=f"{smallest - 1} x {smallest}.*stem {stem} needs {smallest}"
    ):
        encoder(images(1, 3, smallest - 1, smallest))


def test_unknown_depth_and_stem_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"depth 42.\n.*10, 18, 34, 50, 101, 152, 200"):
        ResNet(42)
    with pytest.raises(UserError, match=r"'tiny'.\n.*imagenet, small, small_stride2"):
        ResNet(18, stem="tiny")  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 7), (6, 7), (2, 3)])
def test_max_pool_pads_as_tensorflows_same_does(height: int, width: int):
    """Total padding is what the last window lacks; the smaller half goes before."""
    x = images(1, 2, height, width) - 2  # below 0: a padding of 0 would win
    pads = []
    for size in (width, height):
        total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
        pads += [total // 2, total - total // 2]
    expected = F.max_pool2d(F.pad(x, pads, value=-torch.inf), 3, 2)
    torch.testing.assert_close(max_pool_same(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("depth", "last"), [(18, "norm2"), (50, "norm3")])
def test_only_the_last_norm_of_each_branch_starts_at_zero(depth: int, last: str):
    zero = {
        name
        for name, part in small(depth).named_modules()
        if isinstance(part, BatchNorm) and part.weight.abs().max() == 0
    }
    n_blocks = {18: 8, 50: 16}[depth]
    assert len(zero) == n_blocks
    assert all(name.startswith("groups.") and name.endswith(last) for name in zero)


@pytest.mark.parametrize("sk_ratio", [0, 0.0625])
def test_an_image_alone_can_be_trained_on(sk_ratio: float):
    """The squeezed features then have one value per channel, which torch's own norm refuses."""
    h_BD = small(50, sk_ratio=sk_ratio).train()(images(1, 3, 64, 64))
    assert torch.isfinite(h_BD).all()


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_channels_last_goes_through(stem):
    encoder = small(50, stem=stem, sk_ratio=0.0625).to(memory_format=torch.channels_last)
    x = images(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    outputs = encoder.features(x)
    outputs.pop("h")
    for name, output in outputs.items():
        assert output.is_contiguous(memory_format=torch.channels_last), name
    plain = small(50, stem=stem, sk_ratio=0.0625)(images(2, 3, 64, 64))
    torch.testing.assert_close(encoder(x), plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sk_ratio", [0, 0.0625])
@pytest.mark.parametrize("more", ["groups", "blocks"])
def test_recomputing_changes_no_number(sk_ratio: float, more: Recompute):
    results = []
    for recompute in ("none", more):
        encoder = small(50, sk_ratio=sk_ratio).train()
        with torch.no_grad():  # so that the last norm of a branch lets gradients through
            for part in encoder.modules():
                if isinstance(part, BatchNorm):
                    part.weight.fill_(0.7)
        encoder.recompute = recompute
        encoder(images(4, 3, 64, 64)).square().sum().backward()
        gradients = {f"grad {name}": p.grad for name, p in encoder.named_parameters()}
        results.append({**gradients, **dict(encoder.named_buffers())})
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=0, atol=0, msg=name)
