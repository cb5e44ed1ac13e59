"""Every stored net against the official code: forward, training mode, losses, gradients.

The folder is GOLDEN_DIR's; any set of the same format will do. Differences are relative to the
largest value of the array, unless a test says otherwise.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.importing.verify import ALONG_THE_WAY
from stages.models.heads import LinearClassifier
from stages.models.official_names import (
    OfficialVariable,
    in_tracking_order,
    official_variables,
)
from stages.models.simclr import SimCLR, build_classifier, build_encoder, build_simclr

pytestmark = pytest.mark.golden

GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "data")
NETS = sorted(path.parent.name for path in GOLDEN.glob("nets/*/variables.json"))
TRAINED = [name for name in NETS if "x_train" in np.load(GOLDEN / "nets" / name / "io.npz").files]

EVAL = 5e-6
EVAL_MOMENTS = 1e-5  # a mean of many values may be small beside what it is the mean of
TIMES_FLOAT64_DIFFERENCE = 3  # as far from the stored float32 run as three times its own error
TRAIN_FLOOR = 2e-5  # two sums in another order, on the batch statistics of a few images
TRAIN_CEILING = 1e-3
GRADIENT_OF_ONE = 2e-3
GRADIENT_OF_ALL = 1e-3
TIMES_ROUNDING = 3
WORST_ROUNDING = 0.5
TRIAL_NOISE = 1e-5
NOISY_RUNS = 4

# What `ResNet.features` gives before h, by its official name.
STAGES = {official: ours for official, ours in ALONG_THE_WAY.items() if ours != "h"}


@dataclass(frozen=True)
class Net:
    """A stored net: what it is, its weights by official name, inputs and outputs."""

    config: dict
    stored_names: list[dict]
    variables: list[OfficialVariable]
    state: dict[str, Tensor]
    io: dict[str, np.ndarray]

    def build(self) -> tuple[SimCLR, LinearClassifier]:
        flags = self.config["flags"]
        with torch.device("meta"):  # weights come from the state
            encoder = build_encoder(
                flags["resnet_depth"],
                flags["width_multiplier"],
                flags["sk_ratio"],
                stem_of(self.config),
            )
            simclr = build_simclr(
                encoder, flags["num_proj_layers"], hidden_width=1.0, out_dim=flags["proj_out_dim"]
            )
            linear = LinearClassifier(encoder.feature_dim, self.config["num_classes"])
        mine = {name: value.clone() for name, value in self.state.items()}
        supervised = {name.removeprefix("linear."): mine.pop(name) for name in LINEAR}
        simclr.load_state_dict(mine, assign=True)
        linear.load_state_dict(supervised, assign=True)
        for parameter in [*simclr.parameters(), *linear.parameters()]:
            parameter.requires_grad_()
        return simclr, linear


LINEAR = ("linear.weight", "linear.bias")


def stem_of(config: dict) -> str:
    return "small" if config["image_size"] <= 32 else "imagenet"


def draw(entry: dict) -> np.ndarray:
    """A weight by its recipe, checked against its digest."""
    recipe, shape = entry["recipe"], entry["shape"]
    random = np.random.RandomState(recipe["seed"])
    n = int(np.prod(shape))
    z = random.standard_normal(n) if recipe["dist"] == "normal" else random.random_sample(n)
    value = (recipe["offset"] + recipe["scale"] * z).astype("<f4")
    assert hashlib.sha256(value.tobytes()).hexdigest()[:16] == entry["sha256_16"]
    return value.reshape(shape)


@lru_cache(maxsize=1)
def read_net(name: str) -> Net:
    folder = GOLDEN / "nets" / name
    described = json.loads((folder / "variables.json").read_text())
    config, stored = described["config"], described["variables"]
    flags = config["flags"]
    weights_file = folder / "weights.npz"
    arrays = (
        np.load(weights_file) if weights_file.exists() else {e["name"]: draw(e) for e in stored}
    )
    variables = official_variables(
        flags["resnet_depth"],
        sk=flags["sk_ratio"] > 0,
        stem=stem_of(config),
        head_depth=flags["num_proj_layers"],
    )
    state = {v.ours: v.to_ours(torch.from_numpy(arrays[v.path])) for v in variables}
    return Net(config, stored, variables, state, dict(np.load(folder / "io.npz")))


def difference(ours: Tensor, golden: np.ndarray) -> float:
    """Largest difference over largest value."""
    assert tuple(ours.shape) == golden.shape
    reference = torch.from_numpy(np.asarray(golden)).double()
    return ((ours.detach().double() - reference).abs().max() / reference.abs().max()).item()


def images(x_BHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(x_BHWC).permute(0, 3, 1, 2).contiguous()


def from_bchw(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.permute(0, 2, 3, 1)


@pytest.fixture(params=NETS, scope="module")
def net(request: pytest.FixtureRequest) -> Net:
    return read_net(request.param)


@pytest.fixture(params=TRAINED, scope="module")
def trained_net(request: pytest.FixtureRequest) -> Net:
    return read_net(request.param)


def test_the_golden_set_has_nets():
    assert NETS, f"no nets in {GOLDEN}; set GOLDEN_DIR to a golden set"
    assert TRAINED


def test_names_and_shapes_follow_from_the_structure(net: Net):
    stored = [
        (e["name"], e["tf2_variable_name"], e["tf1_name"], tuple(e["shape"]), e["trainable"])
        for e in net.stored_names
    ]
    assert stored == [
        (
            v.path,
            f"{v.tf2_name}:0",
            v.tf1_name,
            tuple(v.to_official(net.state[v.ours]).shape),
            v.trainable,
        )
        for v in net.variables
    ]
    assert [e["tf2_checkpoint_key"] for e in net.stored_names] == [v.tf2_key for v in net.variables]


def test_eval_mode_stages_are_the_official_ones(net: Net):
    simclr, _ = net.build()
    with torch.no_grad():
        outputs = simclr.eval().encoder.features(images(net.io["x_eval"]))
    worst = {"h": (difference(outputs["h"], net.io["eval_final_avg_pool"]), EVAL)}
    for theirs, ours in STAGES.items():
        x_BHWC, key = from_bchw(outputs[ours]), f"eval_{theirs}"
        if key in net.io:
            worst[ours] = difference(x_BHWC, net.io[key]), EVAL
            continue
        moments = {
            "spatial_mean": x_BHWC.mean(dim=(1, 2)),
            "std": x_BHWC.std(correction=0),
            "corner": x_BHWC[:, -2:, -2:, :8],
        }
        for moment, value in moments.items():
            limit = EVAL if moment == "corner" else EVAL_MOMENTS
            worst[f"{ours} {moment}"] = difference(value, net.io[f"{key}_{moment}"]), limit
    assert {name: pair for name, pair in worst.items() if pair[0] > pair[1]} == {}


def test_eval_mode_head_layers_and_logits_are_the_official_ones(net: Net):
    simclr, linear = net.build()
    x_BCHW = images(net.io["x_eval"])
    with torch.no_grad():
        h_BD = simclr.eval().encoder(x_BCHW)
        worst = {
            f"proj_{layer}": difference(tap, net.io[f"eval_proj_{layer}"])
            for layer, tap in enumerate(simclr.head.taps(h_BD))
        }
        for key in [key for key in net.io if key.startswith("eval_logits_sup_sel")]:
            layer = int(key.removeprefix("eval_logits_sup_sel"))
            classifier = build_classifier(simclr, layer, net.config["num_classes"])
            classifier.linear.load_state_dict(linear.state_dict())
            worst[key] = difference(classifier.eval()(x_BCHW), net.io[key])
    assert {name: value for name, value in worst.items() if value > EVAL} == {}


@dataclass(frozen=True)
class TrainingPass:
    """What one forward and backward pass in training mode leaves, by official name."""

    outputs: dict[str, Tensor]
    moving: dict[str, Tensor]
    gradients: dict[str, Tensor]


@lru_cache(maxsize=1)
def train_once(name: str) -> TrainingPass:
    return train(read_net(name))


def train(net: Net, noise: float = 0.0, seed: int = 0) -> TrainingPass:
    """One pass, from the stored weights or from weights that are off by a share `noise`."""
    flags = net.config["flags"]
    simclr, linear = net.build()
    random = torch.Generator().manual_seed(seed)
    if noise:
        with torch.no_grad():
            for weight in simclr.parameters():
                weight.mul_(1 + noise * torch.randn(weight.shape, generator=random))
    x_BHW6 = net.io["x_train"]
    views_ACHW = images(np.concatenate([x_BHW6[..., :3], x_BHW6[..., 3:]]))
    labels_A = torch.from_numpy(net.io["labels_train"]).long().repeat(2)
    h_AD = simclr.train().encoder(views_ACHW)
    taps = simclr.head.taps(h_AD)
    logits_AK = linear(h_AD.detach())
    losses = {
        "con_loss": official_nt_xent(taps[-1], flags["temperature"]),
        "sup_loss": F.cross_entropy(logits_AK, labels_A),
        "weight_decay_loss": flags["weight_decay"] * linear.weight.square().sum() / 2,
    }
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    module_tensors = {
        **dict(simclr.named_parameters()),
        **{f"linear.{name}": parameter for name, parameter in linear.named_parameters()},
        **dict(simclr.named_buffers()),
    }
    named = {v.path: (v, module_tensors[v.ours]) for v in net.variables}
    return TrainingPass(
        outputs={
            "final_avg_pool": h_AD,
            "logits_sup": logits_AK,
            **{f"proj_{layer}": tap for layer, tap in enumerate(taps)},
            **losses,
            "total_loss": total,
        },
        moving={path: value for path, (v, value) in named.items() if not v.trainable},
        gradients={
            path: v.to_official(value.grad) for path, (v, value) in named.items() if v.trainable
        },
    )


def official_nt_xent(z_AP: Tensor, temperature: float) -> Tensor:
    """The sum of the means over both directions: twice the papers' loss."""
    z_AP = F.normalize(z_AP, dim=1)
    logits_AA = z_AP @ z_AP.T / temperature - 1e9 * torch.eye(len(z_AP))
    partner_A = torch.arange(len(z_AP)).roll(len(z_AP) // 2)
    return 2 * F.cross_entropy(logits_AA, partner_A)


def recorded_error(net: Net, name: str) -> float:
    """How far the stored float32 run is from the same graph in float64."""
    return net.config["float32_vs_float64_max_rel_to_largest"][f"train_{name}"]


def z_name(net: Net) -> str:
    return f"proj_{net.config['flags']['num_proj_layers']}"


def train_limit(net: Net, name: str) -> float:
    error = recorded_error(net, name)
    return min(max(TIMES_FLOAT64_DIFFERENCE * error, TRAIN_FLOOR), TRAIN_CEILING)


def test_training_mode_outputs_and_losses_are_the_official_ones(trained_net: Net):
    outputs = train_once(trained_net.config["name"]).outputs
    limits = {name: train_limit(trained_net, z_name(trained_net)) for name in outputs}
    for on_h in ("final_avg_pool", "proj_0", "logits_sup", "sup_loss"):
        limits[on_h] = train_limit(trained_net, "final_avg_pool")
    worst = {n: difference(value, trained_net.io[f"train_{n}"]) for n, value in outputs.items()}
    assert {n: (value, limits[n]) for n, value in worst.items() if value > limits[n]} == {}


def test_one_training_pass_moves_the_statistics_as_officially(trained_net: Net):
    moving = train_once(trained_net.config["name"]).moving
    stored = {k.removeprefix("train_moving/") for k in trained_net.io if k.startswith("train_mov")}
    assert stored == set(moving)
    limit = train_limit(trained_net, "moving")
    worst = {n: difference(v, trained_net.io[f"train_moving/{n}"]) for n, v in moving.items()}
    assert {n: (value, limit) for n, value in worst.items() if value > limit} == {}


def golden_gradients(net: Net) -> dict[str, tuple[Tensor, float]]:
    """Per variable the stored entries of the gradient (all, or the first 16) and its norm."""
    if not any(key.startswith("grad_norm/") for key in net.io):
        whole = {k.removeprefix("grad/"): v for k, v in net.io.items() if k.startswith("grad/")}
        entries = {name: torch.from_numpy(v).flatten() for name, v in whole.items()}
        return {name: (value, value.norm().item()) for name, value in entries.items()}
    return {
        key.removeprefix("grad_norm/"): (
            torch.from_numpy(net.io[key.replace("grad_norm/", "grad_head/")]),
            norm.item(),
        )
        for key, norm in net.io.items()
        if key.startswith("grad_norm/")
    }


def gradient_errors(
    gradients: dict[str, Tensor], reference: dict[str, tuple[Tensor, float]]
) -> dict[str, float]:
    """Norm of the difference over the norm, per variable and over "all" of them.

    Where a few entries are known they are held against the norm that average ones would have.
    """
    errors, squared_error, squared_norm = {}, 0.0, 0.0
    for name, (entries, norm) in reference.items():
        mine, known = gradients[name].flatten(), len(entries)
        average = norm * (known / len(mine)) ** 0.5
        error = (mine[:known] - entries).norm().item()
        errors[name] = max(
            error / max(average, entries.norm().item()), abs(mine.norm().item() - norm) / norm
        )
        squared_error += (errors[name] * norm) ** 2
        squared_norm += norm**2
    return {**errors, "all": (squared_error / squared_norm) ** 0.5}


def gradient_errors_of_rounding(net: Net, known: dict[str, int]) -> dict[str, float]:
    """How far gradients may go by the rounding of the stored run alone.

    A ReLU whose input is within rounding of 0 is open in one run and shut in another, and every
    gradient below it changes by far more than rounding. How many such units a net has can be
    seen from weights that are off by just so much that z is as far off as the stored z is.
    """
    exact = train_once(net.config["name"])
    z_AP = exact.outputs[z_name(net)].detach().numpy()
    trial = difference(train(net, noise=TRIAL_NOISE).outputs[z_name(net)], z_AP)
    noise = TRIAL_NOISE * TIMES_FLOAT64_DIFFERENCE * recorded_error(net, z_name(net)) / trial
    reference = {
        name: (exact.gradients[name].flatten()[:count], exact.gradients[name].norm().item())
        for name, count in known.items()
    }
    runs = [
        gradient_errors(train(net, noise, seed).gradients, reference) for seed in range(NOISY_RUNS)
    ]
    return {name: max(run[name] for run in runs) for name in runs[0]}


def test_gradients_are_the_official_ones(trained_net: Net):
    golden = golden_gradients(trained_net)
    gradients = train_once(trained_net.config["name"]).gradients
    assert set(golden) == set(gradients)
    errors = gradient_errors(gradients, golden)
    limits = {name: GRADIENT_OF_ALL if name == "all" else GRADIENT_OF_ONE for name in errors}
    if any(error > limits[name] for name, error in errors.items()):
        known = {name: len(entries) for name, (entries, _) in golden.items()}
        for name, error in gradient_errors_of_rounding(trained_net, known).items():
            limits[name] = max(limits[name], min(TIMES_ROUNDING * error, WORST_ROUNDING))
    assert {n: (error, limits[n]) for n, error in errors.items() if error > limits[n]} == {}


def test_gradients_are_listed_in_keras_tracking_order(trained_net: Net):
    """The official list of trainable variables is the order that a SavedModel numbers."""
    listed = [k.split("/", 1)[1] for k in trained_net.io if k.startswith(("grad/", "grad_norm/"))]
    assert [v.path for v in in_tracking_order(trained_net.variables) if v.trainable] == listed


VARIABLE_NAMES = json.loads((GOLDEN / "variable_names.json").read_text()) if NETS else {}


@pytest.mark.parametrize("name", VARIABLE_NAMES.get("models", ()))
def test_names_of_released_networks_follow_from_their_structure(name: str):
    depth, _, sk = name.removeprefix("r").split("_")
    variables = official_variables(int(depth), sk=sk == "sk1")
    assert [[v.tf2_key, v.tf2_name, v.tf1_name] for v in variables] == [
        row[:3] for row in VARIABLE_NAMES["models"][name]
    ]


@pytest.mark.parametrize("name", VARIABLE_NAMES.get("models", ()))
def test_shapes_of_released_networks_are_the_official_ones(name: str):
    depth, width, sk = name.removeprefix("r").split("_")
    with torch.device("meta"):
        encoder = build_encoder(int(depth), float(width.rstrip("x")), 0.0625 * (sk == "sk1"))
        simclr = build_simclr(encoder)
        linear = LinearClassifier(encoder.feature_dim, 1000)
    tensors = simclr.state_dict() | {f"linear.{k}": v for k, v in linear.state_dict().items()}
    variables = official_variables(int(depth), sk=sk == "sk1")
    assert {v.ours for v in variables} == set(tensors)
    assert [list(v.to_official(tensors[v.ours]).shape) for v in variables] == [
        row[3] for row in VARIABLE_NAMES["models"][name]
    ]
    assert [v.trainable for v in variables] == [row[4] for row in VARIABLE_NAMES["models"][name]]


@pytest.mark.parametrize(
    "counts",
    VARIABLE_NAMES.get("parameter_counts", ()),
    ids=lambda c: f"r{c['depth']}_{c['width']}x_sk{int(c['sk'])}",
)
def test_parameter_counts_are_the_papers(counts: dict):
    with torch.device("meta"):  # 795M of them fit nowhere
        encoder = build_encoder(counts["depth"], counts["width"], 0.0625 * counts["sk"])
        simclr = build_simclr(encoder)
        linear = LinearClassifier(encoder.feature_dim, 1000)

    def count(module: torch.nn.Module, *, moving: bool) -> int:
        statistics = sum(buffer.numel() for buffer in module.buffers()) if moving else 0
        return sum(parameter.numel() for parameter in module.parameters()) + statistics

    assert {
        "base_trainable": count(encoder, moving=False),
        "base_with_moving_stats": count(encoder, moving=True),
        "head_contrastive_trainable": count(simclr.head, moving=False),
        "head_contrastive_with_moving_stats": count(simclr.head, moving=True),
        "head_supervised_1000": count(linear, moving=True),
        "n_variables": len([*simclr.state_dict(), *linear.state_dict()]),
    }.items() <= counts.items()
    assert round(count(encoder, moving=True) / 1e6) == counts["paper_millions"]
