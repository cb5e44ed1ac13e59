"""Exports, loaded into the real torchvision and the real timm."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stages import export
from stages.errors import UserError
from stages.exporting.foreign_names import foreign_state
from stages.exporting.foreign_recipes import build_recipe
from stages.models.batch_norm import BatchNorm
from stages.models.simclr import Classifier, SimCLR
from stages.training.products import build_from, write_product

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "stages.export"]
EQUAL = 1e-5  # of the largest value
OFFICIAL = [
    (50, 1, 0.0),
    (50, 1, 0.0625),
    (50, 2, 0.0),
    (50, 2, 0.0625),
    (101, 1, 0.0),
    (101, 1, 0.0625),
    (101, 2, 0.0),
    (101, 2, 0.0625),
    (152, 1, 0.0),
    (152, 1, 0.0625),
    (152, 2, 0.0),
    (152, 2, 0.0625),
    (152, 3, 0.0625),
]


def architecture(
    depth: int,
    width: float = 1.0,
    sk_ratio: float = 0.0,
    stem: str = "imagenet",
    channels: int = 3,
    from_layer: int | None = None,
) -> dict[str, Any]:
    encoder = {"depth": depth, "width_multiplier": width, "sk_ratio": sk_ratio, "stem": stem}
    head = {"depth": 3, "hidden_width": 0.05, "out_dim": 16}
    classes = {} if from_layer is None else {"from_layer": from_layer, "classes": 7}
    return {"encoder": encoder, "channels": channels, "head": head, **classes}


def network(described: dict[str, Any]) -> SimCLR | Classifier:
    """Random in all that training moves: gammas that start at 0 would hide whole branches."""
    torch.manual_seed(0)
    model = build_from(described).eval()
    for part in model.modules():
        if isinstance(part, BatchNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.1)
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return model


def images(size: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(size))


def ours(model: SimCLR | Classifier, images_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return (model if isinstance(model, Classifier) else model.encoder)(images_BCHW)


def theirs(net: nn.Module, images_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return net.eval()(images_BCHW)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference over largest value."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


def run(recipe: str, **names: Any) -> nn.Module:
    """What a recipe leaves as `net`, from its text alone."""
    space: dict[str, Any] = dict(names)
    exec(recipe, space)
    return space["net"]


def exported(
    tmp_path: Path,
    model: nn.Module,
    described: dict[str, Any],
    kind: str,
    name: str = "exported.safetensors",
) -> Path:
    """The file that the command leaves of a product."""
    write_product(tmp_path / "product", model, described, stage="test")
    file = tmp_path / name
    arguments = ["export", str(tmp_path / "product"), "--as", kind, "--into", str(file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        export.main()
    return file


def recipe_in(file: Path) -> str:
    with safe_open(file, "pt") as opened:
        return opened.metadata()["recipe"]


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_resnet50_in_a_file_gives_our_features_at_even_and_odd_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    described = architecture(50)
    model = network(described)
    file = exported(tmp_path, model, described, kind)
    recipe = recipe_in(file)
    assert recipe in capsys.readouterr().out
    net = run(recipe, path=file)
    for size in (64, 65, 66, 67):  # the first feature map has 32, 33, 33, 34 rows
        assert difference(theirs(net, images(size)), ours(model, images(size))) < EQUAL


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_stock_resnet50_takes_every_weight_but_pools_at_other_sides(library: str):
    model = network(architecture(50))
    stock = {
        "torchvision": torchvision.models.resnet50,
        "timm": lambda: timm.create_model("resnet50"),
    }[library]()
    missing, unexpected = stock.load_state_dict(foreign_state(model), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    stock.fc = nn.Identity()
    stock.load_state_dict(foreign_state(model), strict=True)
    # An even feature map is where the two paddings differ.
    assert difference(theirs(stock, images(64)), ours(model, images(64))) > 1e-2
    assert difference(theirs(stock, images(65)), ours(model, images(65))) < EQUAL


CASES = {
    "torchvision": [
        architecture(18, from_layer=0),
        architecture(18, from_layer=1),
        architecture(18, from_layer=3),
        architecture(10, channels=1, from_layer=2),
        architecture(18, stem="small"),
        architecture(10, stem="small_stride2", channels=1),
    ],
    "timm": [
        architecture(18, from_layer=0),
        architecture(18, from_layer=1, channels=1),
        architecture(10, 0.25, stem="small_stride2", channels=1, from_layer=3),
        architecture(34, 0.125),
        architecture(50, 0.25),
        architecture(50, 0.125, from_layer=2),
        architecture(50, 0.25, 0.0625),
        architecture(50, 0.125, 0.0625, from_layer=1),
        architecture(50, 0.25, 0.0625, stem="small"),
        architecture(50, 0.25, 0.7),  # squeezed widths of 32, 32, 44, 89
        architecture(101, 0.0625, 0.5, channels=1, stem="small_stride2", from_layer=0),
        architecture(200, 0.0625),
    ],
}


def named(described: dict[str, Any]) -> str:
    encoder = "-".join(str(value) for value in described["encoder"].values())
    return f"r{encoder}-c{described['channels']}-on{described.get('from_layer', 'f')}"


@pytest.mark.parametrize(
    ("library", "described"),
    [(library, described) for library, cases in CASES.items() for described in cases],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_a_recipe_builds_the_same_function_for_every_size(library, described: dict[str, Any]):
    model = network(described)
    net = run(build_recipe(model, library))
    net.load_state_dict(foreign_state(model), strict=True)
    for size in (40, 45):
        x_BCHW = images(size, described["channels"])
        assert difference(theirs(net, x_BCHW), ours(model, x_BCHW)) < EQUAL


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(("depth", "width", "sk_ratio"), OFFICIAL)
def test_each_network_of_the_paper_fits_name_by_name_or_is_refused(
    library, depth: int, width: float, sk_ratio: float
):
    """Shapes alone: the largest has 795 million weights."""
    with torch.device("meta"):
        model = build_from(architecture(depth, width, sk_ratio))
        if library == "torchvision" and (width, sk_ratio) != (1, 0.0):
            with pytest.raises(UserError, match="--as timm"):
                build_recipe(model, library)
            return
        net = run(build_recipe(model, library))
        expected = {name: value.shape for name, value in net.state_dict().items()}
        assert {name: value.shape for name, value in foreign_state(model).items()} == expected


def test_refusals_say_what_was_found_and_what_would_do():
    wide = build_from(architecture(18, 2.0))
    with pytest.raises(UserError, match=r"has 128 and \[128, 256, 512, 1024\].*\n.*--as timm"):
        build_recipe(wide, "torchvision")
    selective = build_from(architecture(50, 0.25, 0.0625))
    with pytest.raises(UserError, match=r"selective kernels.*\n.*--as timm"):
        build_recipe(selective, "torchvision")
    rounded = build_from(architecture(50, 0.05, 0.0625))
    with pytest.raises(UserError, match=r"begins with 1 channels and ends with 3 .*\n.*encoder"):
        build_recipe(rounded, "timm")
    mixed = build_from(architecture(18, 0.25, 0.0625))
    with pytest.raises(UserError, match=r"sk_ratio with basic blocks.*\n.*--as encoder"):
        build_recipe(mixed, "timm")


def test_the_encoder_alone_comes_back_from_its_file(tmp_path: Path):
    described = architecture(50, 0.125, 0.0625, stem="small", channels=1, from_layer=1)
    model = network(described)
    file = exported(tmp_path, model, described, "encoder")
    net = run(recipe_in(file), path=file)
    expected = model.encoder(images(32, 1))
    torch.testing.assert_close(theirs(net, images(32, 1)), expected, rtol=0, atol=0)


def test_an_export_tells_what_it_is_and_shares_nothing_with_the_product(tmp_path: Path):
    described = architecture(10, from_layer=0)
    model = network(described)
    file = exported(tmp_path, model, described, "torchvision")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    card = json.loads((tmp_path / "product/card.json").read_text())
    assert metadata["format"] == "pt"
    assert metadata["input"] == "RGB in [0, 1], with no mean and deviation taken out"
    assert json.loads(metadata["architecture"]) == described
    assert metadata["product_sha256"] == card["weights_sha256"]
    assert metadata["commit"] == card["run"]["commit"]
    state = foreign_state(model)
    state["conv1.weight"].zero_()
    assert model.encoder.stem.convs[0].weight.abs().max() > 0
    assert torch.equal(load_file(file)["fc.weight"], model.linear.weight)
    assert not list(tmp_path.glob("*.partial"))


def test_what_can_not_be_exported_or_written_is_told_before_anything_is_read(tmp_path: Path):
    product = tmp_path / "many/seed-0"
    described = architecture(10, 0.125)
    write_product(product, network(described), described)
    with pytest.raises(
        UserError, match=r"many is no product.*\n.*Name one of those in it: .*seed-0"
    ):
        export.check_arguments(tmp_path / "many", tmp_path / "out.safetensors")
    with pytest.raises(UserError, match=r"no product.*\n.*Name a product's folder"):
        export.check_arguments(tmp_path / "nowhere", tmp_path / "out.safetensors")
    with pytest.raises(UserError, match=r"out.pth: exports are safetensors"):
        export.check_arguments(product, tmp_path / "out.pth")
    with pytest.raises(UserError, match="a product's own weights"):
        export.check_arguments(product, product / "model.safetensors")


@pytest.mark.parametrize("folder", ["product/card.json", "taken.safetensors.partial/.."])
def test_a_file_that_can_not_be_written_is_the_users_to_mend(tmp_path: Path, folder: str):
    described = architecture(10, 0.125)
    (tmp_path / "taken.safetensors.partial").mkdir()
    with pytest.raises(
        UserError, match=r"taken.safetensors can't be written: .*\n.*another folder"
    ):
        exported(tmp_path, network(described), described, "encoder", f"{folder}/taken.safetensors")


def test_the_command_refuses_with_exit_code_2_and_leaves_no_file(tmp_path: Path):
    described = architecture(10, 0.125)
    write_product(tmp_path / "product", network(described), described)
    done = subprocess.run(
        [*COMMAND, "product", "--as", "torchvision", "--into", "out.safetensors"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "this product has 8 and [8, 16, 32, 64]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*"))
