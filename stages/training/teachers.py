"""What a teacher answers to the images that a student learns from.

Shapes: N images of a store, B a batch of them, V views, C H W, K classes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.data.store import ImageStore
from stages.data.views import ViewRecipe, make_views
from stages.models.simclr import Classifier
from stages.training.batches import Batch
from stages.training.runtime import Runtime
from stages.training.steps import Answers

AT_ONCE = 256  # images of which the views are made and answered together
BEFORE_ALL_EPOCHS = -1  # so these are other views than those a student sees


def answers_to_the_same_view(
    teacher: Classifier, runtime: Runtime, precision: str = "float32"
) -> Answers:
    """The teacher sees what the student sees, step by step (SimCLRv2, section 2)."""
    teacher.eval().requires_grad_(False)

    def answer(_batch: Batch, images_BCHW: Tensor) -> Tensor:
        with torch.no_grad(), runtime.autocast(precision):
            return teacher(images_BCHW).float()

    return answer


def answers_over_views(
    teacher: Classifier,
    store: ImageStore,
    recipe: ViewRecipe,
    n_views: int,
    temperature: float,
    seed: int,
    runtime: Runtime,
) -> Answers:
    """One answer per image, made once: the mean of the teacher's probabilities over V views.

    Not the paper's. A teacher of few labels is unsure of single crops; the mean over several is
    right more often, and the student sees each image under it many times.

    Args:
        teacher: taken as it is, in inference mode.
        store: all images that the student will see.
        recipe: of the views.
        n_views: V, at least 1.
        temperature: of the probabilities that are averaged; the answers are logits whose softmax
            at this temperature is the mean.
        seed: of the views.
        runtime: device.
    """
    teacher.eval().requires_grad_(False)
    rows = []
    for start in range(0, store.n_images, AT_ONCE):
        positions_B = np.arange(start, min(start + AT_ONCE, store.n_images))
        views_VBCHW = make_views(
            store.images(positions_B),
            recipe,
            seed=seed,
            epoch=BEFORE_ALL_EPOCHS,
            key_hashes=store.key_hashes[positions_B],
            n_views=n_views,
        ).to(runtime.device)
        flat_ACHW = views_VBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            log_VBK = F.log_softmax(teacher(flat_ACHW).float() / temperature, dim=1)
            log_VBK = log_VBK.view(n_views, len(positions_B), -1)
            rows.append(temperature * (log_VBK.logsumexp(dim=0) - np.log(n_views)))
    answers_NK = torch.cat(rows).clone()  # inference tensors can't take part in training

    def answer(batch: Batch, _images: Tensor) -> Tensor:
        positions_B = torch.from_numpy(batch.positions_B)
        return answers_NK[positions_B.to(answers_NK.device, non_blocking=True)]

    return answer
