"""Nearest neighbours in the space of h.

Shapes: N labelled images, M queries, D width of h, K classes, k neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2000  # queries at a time, so that memory stays bounded


def nearest(queries_MD: Tensor, features_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity and index of the k nearest features of each query, nearest first."""
    known_ND = F.normalize(features_ND, dim=1)
    found = [
        (F.normalize(chunk_MD, dim=1) @ known_ND.T).topk(k, dim=1)
        for chunk_MD in queries_MD.split(CHUNK)
    ]
    return torch.cat([values for values, _ in found]), torch.cat([index for _, index in found])


def knn_logits(
    queries_MD: Tensor,
    features_ND: Tensor,
    classes_N: Tensor,
    n_classes: int,
    k: int,
    temperature: float,
) -> Tensor:
    """Logarithm of the neighbours' votes, weighted exp(cosine / temperature) (Wu et al. 2018)."""
    similarity_Mk, index_Mk = nearest(queries_MD, features_ND, min(k, len(features_ND)))
    weight_Mk = ((similarity_Mk - 1) / temperature).exp()  # bounded by 1: cosines are
    votes_MK = torch.zeros(len(queries_MD), n_classes)
    votes_MK.scatter_add_(1, classes_N[index_Mk], weight_Mk)
    return votes_MK.clamp(min=1e-30).log()
