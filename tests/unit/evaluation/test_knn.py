"""Votes of the nearest, weighted by their cosine."""

import math

import torch

from stages.evaluation.knn import knn_logits, nearest


def test_nearest_is_by_angle_and_not_by_length():
    features_ND = torch.tensor([[100.0, 100.0], [1.0, 0.1], [0.0, 1.0]])
    similarity, index = nearest(torch.tensor([[1.0, 0.0]]), features_ND, 2)
    assert index.tolist() == [[1, 0]]
    torch.testing.assert_close(similarity[0, 1].item(), math.sqrt(0.5))


def test_votes_are_weighted_by_exp_of_cosine_over_temperature():
    features_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    logits_MK = knn_logits(
        torch.tensor([[1.0, 0.0]]), features_ND, torch.tensor([0, 1, 1]), 2, 3, temperature=0.5
    )
    # class 0: exp((1 - 1) / 0.5) = 1; class 1: twice exp((0 - 1) / 0.5)
    torch.testing.assert_close(logits_MK, torch.tensor([[0.0, math.log(2 * math.exp(-2.0))]]))


def test_more_neighbours_than_images_are_all_of_them():
    features_ND = torch.eye(3)
    logits_MK = knn_logits(torch.eye(3), features_ND, torch.arange(3), 3, 50, 0.07)
    assert logits_MK.argmax(dim=1).tolist() == [0, 1, 2]
