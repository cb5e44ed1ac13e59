"""Linear evaluation: the classifier learns, the encoder stays as it is."""

import copy

import torch
import torch.nn.functional as F

from stages.models.linear_evaluation import LinearEvaluation
from stages.models.simclr import build_encoder
from stages.optim.build import build_optimizer


def a_model() -> LinearEvaluation:
    torch.manual_seed(0)
    encoder = build_encoder(10, 0.0625, stem="small_stride2", in_channels=1)
    return LinearEvaluation(encoder, 3)


def test_training_moves_the_classifier_and_no_part_of_the_encoder():
    model = a_model()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer("sgd", model, 0.1, 1e-4)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    model.train()
    for _ in range(2):
        loss = F.cross_entropy(model(torch.rand(4, 1, 16, 16)), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed == name.startswith("linear."), name


def test_it_starts_at_zero_on_h_of_the_encoder_in_inference_mode():
    model = a_model()
    images = torch.rand(4, 1, 16, 16)
    assert not model(images).any()
    torch.nn.init.normal_(model.linear.weight)
    model.train()
    expected = F.linear(model.encoder.eval()(images), model.linear.weight)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
