"""A rebuilt network against stored outputs of the official one.

The file is an .npz with an input (NHWC, in [0, 1]) and outputs by their official names:
`final_avg_pool` is h, `proj_k` layer k of g, `logits_sup_selk` the classifier on layer k.

Shapes: B images, C H W.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.errors import UserError
from stages.models.simclr import Classifier, SimCLR

INPUTS = ("x_eval", "saved_model_input", "input")
PREFIXES = ("eval_", "saved_model_out/")
TOLERANCE = 5e-6  # of the largest value; a port that followed the official code reached 2e-6
# What `ResNet.features` gives, by its official name.
ALONG_THE_WAY = {
    "initial_conv": "stem_conv",
    "initial_max_pool": "stem",
    "block_group1": "group1",
    "block_group2": "group2",
    "block_group3": "group3",
    "block_group4": "group4",
    "final_avg_pool": "h",
}


@dataclass(frozen=True)
class Comparison:
    """Differences by output, over the largest stored value, and outputs that were not compared."""

    differences: dict[str, float]
    left_out: list[str]

    def beyond(self, tolerance: float) -> list[str]:
        """Outputs that differ by more (or are no numbers)."""
        return [name for name, value in self.differences.items() if not value <= tolerance]


def compare_with_file(module: SimCLR | Classifier, path: Path) -> Comparison:
    """Run the module on the file's input and compare every output that it has.

    Raises:
        UserError: the file is missing or no .npz, has no input, or nothing to compare.
    """
    stored = _read(path)
    name = next((name for name in INPUTS if name in stored), None)
    if name is None:
        raise UserError(
            f"{path} holds no input: expected one of {', '.join(INPUTS)}, "
            f"found {', '.join(sorted(stored)[:10])}."
        )
    channels = module.encoder.stem.convs[0].in_channels
    x_BHWC = stored.pop(name)
    if x_BHWC.ndim != 4 or x_BHWC.shape[-1] != channels:
        raise UserError(
            f"{name} in {path} has shape {list(x_BHWC.shape)}; the network takes images in the "
            f"order (images, height, width, {channels})."
        )
    x_BCHW = torch.from_numpy(np.ascontiguousarray(x_BHWC, "float32")).permute(0, 3, 1, 2)
    ours = official_outputs(module, x_BCHW.contiguous())
    differences, left_out = {}, []
    for stored_name, reference in stored.items():
        prefix = next((p for p in PREFIXES if stored_name.startswith(p)), "")
        output = ours.get(stored_name.removeprefix(prefix))
        if output is None:
            left_out.append(stored_name)
        elif tuple(output.shape) != reference.shape:
            raise UserError(
                f"{stored_name} in {path} has shape {list(reference.shape)}, the network's is "
                f"{list(output.shape)}.\n  These are the outputs of another network or input."
            )
        else:
            differences[stored_name] = _difference(output.double().numpy(), reference)
    if not differences:
        raise UserError(
            f"{path} holds no output of this network.\n  Known names: "
            f"{', '.join(ours)}, each with {' or '.join(PREFIXES)} before it or nothing."
        )
    return Comparison(differences, left_out)


def official_outputs(module: SimCLR | Classifier, x_BCHW: Tensor) -> dict[str, Tensor]:
    """Every output in inference mode by its official name, feature maps with channels last."""
    module.eval()
    with torch.inference_mode():
        along = module.encoder.features(x_BCHW)
        outputs = {theirs: along[ours] for theirs, ours in ALONG_THE_WAY.items()}
        outputs = {
            name: value.permute(0, 2, 3, 1) if value.ndim == 4 else value
            for name, value in outputs.items()
        }
        tap = outputs["proj_head_input"] = outputs["proj_0"] = along["h"]
        for number, layer in enumerate(module.head, start=1):
            tap = outputs[f"proj_{number}"] = layer(tap)
        if isinstance(module, Classifier):
            logits = module.linear(tap)
            outputs |= {"logits_sup": logits, f"logits_sup_sel{len(module.head)}": logits}
        else:
            outputs["proj_head_output"] = tap
    return outputs


def _difference(ours: np.ndarray, reference: np.ndarray) -> float:
    reference = reference.astype("float64")
    largest, apart = np.abs(reference).max(initial=0), np.abs(ours - reference).max(initial=0)
    return float(apart / largest) if largest else float(apart)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array, not an .npz")
            wanted = [name for name in file.files if "/" not in name or name.startswith(PREFIXES)]
            return {name: array for name in wanted if (array := file[name]).dtype.kind in "fiu"}
    except FileNotFoundError:
        raise UserError(f"there is no file {path}.") from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as fault:
        raise UserError(f"{path} can't be read as .npz: {fault}") from None
