import pytest
import torch

from stages.errors import StageError
from stages.evaluation.features import frozen, state_digest
from stages.models.resnet import ResNet


def encoder() -> ResNet:
    torch.manual_seed(0)
    return ResNet(10, 0.125, stem="small", in_channels=1)


def test_an_encoder_in_inference_mode_stays_as_it_is():
    model = encoder().eval()
    with frozen(model), torch.no_grad():
        model(torch.rand(4, 1, 16, 16))


def test_moving_statistics_of_an_encoder_left_in_training_mode_are_noticed():
    model = encoder().train()
    with pytest.raises(StageError, match="frozen encoder changed"), frozen(model), torch.no_grad():
        model(torch.rand(4, 1, 16, 16))


@pytest.mark.parametrize("name", ["groups.0.0.conv1.weight", "stem.norms.0.running_mean"])
def test_one_value_of_a_parameter_or_a_buffer_changes_the_digest(name: str):
    model = encoder()
    before = state_digest(model)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[0] += 1e-6
    assert state_digest(model) != before
