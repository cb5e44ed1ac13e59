import pytest
import torch
from torch import Tensor

from stages.errors import UserError
from stages.models.simclr import (
    SimCLR,
    build_classifier,
    build_encoder,
    build_simclr,
    kept_state,
)


def images(n_images: int) -> Tensor:
    return torch.rand(n_images, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def model(seed: int = 0) -> SimCLR:
    torch.manual_seed(seed)
    encoder = build_encoder(10, 0.125, stem="small", in_channels=1)
    return build_simclr(encoder, depth=3, hidden_width=0.5, out_dim=16)


def test_z_is_the_head_on_h():
    simclr = model().eval()
    z_BP = simclr(images(4))
    assert z_BP.shape == (4, 16)
    assert simclr.head.widths == [64, 32, 32, 16]
    torch.testing.assert_close(z_BP, simclr.head(simclr.encoder(images(4))), rtol=0, atol=0)


@pytest.mark.parametrize(("from_layer", "width"), [(0, 64), (1, 32), (2, 32), (3, 16)])
def test_a_classifier_sits_on_the_layer_asked_for(from_layer: int, width: int):
    simclr = model().eval()
    classifier = build_classifier(simclr, from_layer, 7).eval()
    assert classifier.linear.in_features == width
    expected = classifier.linear(simclr.head.taps(simclr.encoder(images(4)))[from_layer])
    torch.testing.assert_close(classifier(images(4)), expected, rtol=0, atol=0)


def test_a_classifier_from_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"no layer 4.\n  Choose 0 .* to 3"):
        build_classifier(model(), 4, 7)


def test_training_a_classifier_leaves_the_pretrained_network_alone():
    simclr = model()
    before = {name: value.clone() for name, value in simclr.state_dict().items()}
    classifier = build_classifier(simclr, 1, 7)
    classifier.train()(images(4)).square().sum().backward()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in simclr.state_dict().items())
    assert all(parameter.grad is None for parameter in simclr.parameters())


@pytest.mark.parametrize("from_layer", [0, 2])
def test_a_classifier_takes_its_part_of_a_simclr_state(from_layer: int):
    pretrained = model(seed=1).eval()
    classifier = build_classifier(model(seed=2), from_layer, 7).eval()
    state = kept_state(pretrained.state_dict(), from_layer)
    missing, unexpected = classifier.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["linear.weight", "linear.bias"], [])
    tap = pretrained.head.taps(pretrained.encoder(images(4)))[from_layer]
    torch.testing.assert_close(classifier(images(4)), classifier.linear(tap), rtol=0, atol=0)


def test_zero_init_reaches_the_classifier():
    assert build_classifier(model(), 1, 7, zero_init=True).linear.weight.abs().max() == 0
