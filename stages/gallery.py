"""What the encoder sees: views, nearest neighbours, and a map of the embeddings.

Writes embeddings of every image (a product: safetensors, with keys) and the gallery the report
draws (arrays of pixels and points).
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from stages.data.store import ImageStore
from stages.data.views import make_views
from stages.errors import run_stage
from stages.evaluation.features import frozen, outputs
from stages.evaluation.knn import nearest
from stages.models.simclr import SimCLR
from stages.params import Params, load_params
from stages.records import write_json, write_record
from stages.training.classifier import open_split
from stages.training.fingerprint import file_digest
from stages.training.products import build_from, read_product, seeded
from stages.training.recipes import evaluation_recipe, view_recipe
from stages.training.runtime import Runtime
from stages.training.watch import effective_rank

PRETRAINED = Path("artifacts/pretrain")
GALLERY, EMBEDDINGS = Path("artifacts/gallery"), Path("artifacts/embeddings")
NEIGHBOURS = 5


def main() -> None:
    begun = time.perf_counter()
    params = load_params()
    runtime = Runtime.start(params.runtime.device, params.runtime.threads)
    pretrained, card = read_product(PRETRAINED)
    seeded(params.report.seed)
    untrained = build_from(card["architecture"])
    assert isinstance(pretrained, SimCLR)
    assert isinstance(untrained, SimCLR)
    stores = {name: open_split(name, params) for name in ("train", "validation", "test")}
    encoder = runtime.place(pretrained.encoder)
    seen_as = evaluation_recipe(params)
    with frozen(encoder):
        h = {
            name: outputs(encoder, store, seen_as, runtime.device) for name, store in stores.items()
        }
    write_embeddings(h, stores, card)
    shown = {
        **views(stores["train"], params),
        **neighbours(h, stores, params),
        **embedding_map(h["validation"], stores["validation"], untrained, params, runtime),
    }
    GALLERY.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(GALLERY / "gallery.npz", allow_pickle=False, **shown)
    sample_ND = h["validation"][:2000]
    write_record(
        "gallery",
        {
            "effective_rank_h": round(effective_rank(sample_ND), 3),
            "h_std": float(sample_ND.std(dim=0).mean()),
            "neighbour_agreement": neighbour_agreement(h, stores),
            "seconds": round(time.perf_counter() - begun, 2),
        },
        {"params": params.report.model_dump(), "pretrained_sha256": card["weights_sha256"]},
    )


def write_embeddings(
    h: dict[str, Tensor], stores: dict[str, ImageStore], card: dict[str, Any]
) -> None:
    """H of every image, in the order of the keys written beside it."""
    EMBEDDINGS.mkdir(parents=True, exist_ok=True)
    save_file({name: rows.contiguous() for name, rows in h.items()}, EMBEDDINGS / "h.safetensors")
    for name, store in stores.items():
        text = "".join(f"{key}\n" for key in store.keys)
        (EMBEDDINGS / f"{name}.keys.txt").write_text(text, encoding="utf-8")
    write_json(
        EMBEDDINGS / "card.json",
        {
            "rows": {name: list(rows.shape) for name, rows in h.items()},
            "h_sha256": file_digest(EMBEDDINGS / "h.safetensors"),
            "encoder_sha256": card["weights_sha256"],
            "data_fingerprint": stores["train"].fingerprint,
        },
    )


def views(store: ImageStore, params: Params) -> dict[str, np.ndarray]:
    """Some training images and two random views of each, as pretraining sees them."""
    positions_N = spread(store.n_images, params.report.view_images, params.report.seed)
    views_VNCHW = make_views(
        store.images(positions_N),
        view_recipe(params.pretrain.views, params.data.image_size),
        seed=params.report.seed,
        epoch=0,
        key_hashes=store.key_hashes[positions_N],
        n_views=2,
    )
    return {
        "originals": shown_pixels(store, positions_N, params),
        "views": to_pixels(views_VNCHW.flatten(0, 1)).reshape(
            2, len(positions_N), *views_VNCHW.shape[-2:], -1
        ),
    }


def neighbours(
    h: dict[str, Tensor], stores: dict[str, ImageStore], params: Params
) -> dict[str, np.ndarray]:
    """The nearest training images of some test images."""
    count = params.report.neighbour_queries
    queries_Q = spread(stores["test"].n_images, count, params.report.seed)
    similarity_Qk, index_Qk = nearest(h["test"][queries_Q], h["train"], NEIGHBOURS)
    flat = index_Qk.flatten().numpy()
    images = shown_pixels(stores["train"], flat, params)
    return {
        "query_images": shown_pixels(stores["test"], queries_Q, params),
        "query_classes": stores["test"].classes[queries_Q],
        "neighbour_images": images.reshape(len(queries_Q), -1, *images.shape[1:]),
        "neighbour_classes": stores["train"].classes[flat].reshape(len(queries_Q), -1),
        "neighbour_similarity": similarity_Qk.numpy(),
    }


def neighbour_agreement(h: dict[str, Tensor], stores: dict[str, ImageStore]) -> float:
    """Share of validation images whose nearest training image is of their class."""
    known = stores["train"].classes
    _, index_M1 = nearest(h["validation"], h["train"], 1)
    found = known[index_M1[:, 0].numpy()]
    counts = found >= 0
    return float((found == stores["validation"].classes)[counts].mean()) if counts.any() else 0.0


def embedding_map(
    h_MD: Tensor, store: ImageStore, untrained: SimCLR, params: Params, runtime: Runtime
) -> dict[str, np.ndarray]:
    """Two dimensions (t-SNE) of h for some validation images, pretrained and untrained."""
    positions_M = spread(store.n_images, params.report.map_images, params.report.seed)
    sample = store.at(positions_M)
    encoder = runtime.place(untrained.encoder)
    with frozen(encoder):
        random_MD = outputs(encoder, sample, evaluation_recipe(params), runtime.device)
    return {
        "map_xy": flatten_map(h_MD[positions_M], params.report.seed),
        "map_xy_random": flatten_map(random_MD, params.report.seed),
        "map_classes": store.classes[positions_M],
    }


def flatten_map(features_MD: Tensor, seed: int) -> np.ndarray:
    """t-SNE of the first 30 principal components."""
    components = min(30, *features_MD.shape)
    reduced = PCA(components, random_state=seed).fit_transform(features_MD.numpy())
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed)
    return tsne.fit_transform(reduced).astype(np.float32)


def spread(n_images: int, count: int, seed: int) -> np.ndarray:
    """`count` different positions, in rising order."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(n_images, min(count, n_images), replace=False))


def shown_pixels(store: ImageStore, positions_N: np.ndarray, params: Params) -> np.ndarray:
    """Images as evaluation sees them, uint8 (N, H, W, C)."""
    return to_pixels(evaluation_recipe(params)(store.images(positions_N)))


def to_pixels(images_NCHW: Tensor) -> np.ndarray:
    """Floats in [0, 1] to uint8 (N, H, W, C)."""
    scaled = (images_NCHW.clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


if __name__ == "__main__":
    run_stage(main)
