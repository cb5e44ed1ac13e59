"""A run with params of its own: beside the project, on its code, from its cache; then applied."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dvc import Workspace
from pipeline.flows import workspace_for
from pipeline.holder import hold
from pipeline.parameters import ChainParameters
from pipeline.run_workspace import (
    apply,
    folder_name,
    listing,
    names_of,
    workspace_of_params,
)
from stages.errors import UserError
from stages.params import load_params

# Shards depend on a param; the trainer takes its steps from one.
GRAPH = r"""
stages:
  shard:
    cmd:
      - mkdir -p data metrics && cp source data/images && echo '{"images":3}' > metrics/shard.json
      - echo '{"seconds":1}' > metrics/shard.run.json
    deps: [source]
    outs: [data/images, metrics/shard.run.json: {cache: false}]
    metrics: [metrics/shard.json: {cache: false}]
  train:
    cmd: mkdir -p model && echo ${pretrain.seed} > model/seed && ls photos > model/photos
    deps: [data/images]
    params: [pretrain.seed]
    outs: [model]
"""

KEPT = ("dvc.lock", "metrics/shard.json", "params.yaml", "model/seed")


def git(*words: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def project(checkout: Path) -> Workspace:
    """The checkout with a commit, uncommitted changes, and everything up to date."""
    Path("dvc.yaml").write_text(GRAPH)
    Path(".gitignore").write_text("/runs/\n/photos/\n/model\n/data/\n.dvc/cache\n.dvc/tmp\n")
    Path("obsolete.py").touch()
    git("add", "-A")
    git("commit", "-qm", "first")
    Path("photos").mkdir()
    Path("photos/cat.png").touch()
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  root: null", "  root: photos"))
    Path("obsolete.py").unlink()
    Path("new.py").touch()
    workspace = Workspace.here()
    for stage in ("shard", "train"):
        assert workspace.reproduce(stage, lambda _: None).status == "ran"
    return workspace


def test_a_remote_that_is_named_by_a_relative_path_is_the_same_from_beside(project: Workspace):
    words = ["remote", "add", "--quiet", "--default", "storage", "../storage"]
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True)
    beside = workspace_with_seed(project, 8)
    is_there, said = beside.push([], lambda _: None)
    assert is_there, said
    assert any((project.root.parent / "storage").rglob("*"))


def workspace_with_seed(project: Workspace, seed: int) -> Workspace:
    asked = ChainParameters(overrides={"pretrain.seed": seed})
    return workspace_of_params(project, asked.params_text(Path("params.yaml").read_text()))


def test_run_works_beside_the_project_and_is_applied_when_asked(project: Workspace):
    before = Path("params.yaml").read_text()
    seed = load_params().pretrain.seed
    beside = workspace_with_seed(project, 7)
    assert beside.root.parent == project.root / "runs/workspaces"
    assert (beside.root / "new.py").exists()
    assert not (beside.root / "obsolete.py").exists()

    assert beside.changed() == {"train"}
    assert beside.reproduce("shard", lambda _: None).status == "cached"  # from the shared cache
    assert beside.reproduce("train", lambda _: None).status == "ran"
    assert (beside.root / "model/seed").read_text() == "7\n"
    assert (beside.root / "model/photos").read_text() == "cat.png\n"  # named by a relative path
    assert Path("params.yaml").read_text() == before
    assert Path("model/seed").read_text() == f"{seed}\n"
    assert "runs" not in git("status", "--porcelain")

    again = workspace_with_seed(project, 7)
    assert again.root == beside.root
    assert names_of(project) == [beside.root.name]
    name, change = listing(project).splitlines()
    assert name.startswith(f"{beside.root.name}  20")
    assert change == f"  pretrain.seed: {seed} -> 7"
    with pytest.raises(UserError, match="no profile and in no git commit"):
        apply(project, beside.root.name)
    git("commit", "-qm", "mine", "params.yaml")
    with pytest.raises(UserError, match=r"results .* in no git commit(.|\n)*dvc\.lock"):
        apply(project, beside.root.name)
    git("add", "-A")
    git("commit", "-qm", "my results")
    with (
        hold(project.root, "another run", wait=False),
        pytest.raises(UserError, match="held by another run"),
    ):
        apply(project, beside.root.name)
    assert Path("model/seed").read_text() == f"{seed}\n"
    assert apply(project, beside.root.name) == [f"  pretrain.seed: {seed} -> 7"]
    assert Path("model/seed").read_text() == "7\n"
    assert project.changed() == set()
    assert load_params().data.root == "photos"


def test_a_run_whose_products_are_lost_changes_nothing_when_it_is_applied(project: Workspace):
    beside = workspace_with_seed(project, 7)
    for stage in ("shard", "train"):
        beside.reproduce(stage, lambda _: None)
    (beside.root / "metrics/shard.json").write_text('{"images":4}')
    git("add", "-A")
    git("commit", "-qm", "mine")
    before = {name: Path(name).read_text() for name in KEPT}
    for file in Path(".dvc/cache").rglob("*"):
        if file.is_file() and file.read_text() == "7\n":
            file.chmod(0o644)
            file.unlink()
    with pytest.raises(UserError, match="products could not be brought here"):
        apply(project, beside.root.name)
    assert {name: Path(name).read_text() for name in KEPT} == before
    assert git("status", "--porcelain") == ""


def test_a_folder_of_images_that_git_does_not_know_is_linked_and_not_copied(project: Workspace):
    Path("pictures").mkdir()
    Path("pictures/cat.png").write_text("cat")
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  root: photos", "  root: pictures/"))
    beside = workspace_with_seed(project, 7)
    link = beside.root / "pictures"
    assert link.is_symlink()
    link.unlink()
    link.mkdir()
    (link / "cat.png").write_text("a copy, as made by an earlier version")
    workspace_with_seed(project, 7)
    assert link.is_symlink()
    assert Path("pictures/cat.png").read_text() == "cat"


def test_images_behind_a_link_are_the_users_own_and_stay(project: Workspace):
    beside = workspace_with_seed(project, 7)
    assert (beside.root / "photos").is_symlink()
    git("add", "-f", "photos/cat.png")
    git("commit", "-qm", "by mistake")
    git("rm", "--cached", "-q", "photos/cat.png")
    workspace_with_seed(project, 7)
    assert Path("photos/cat.png").exists()


def test_images_that_lie_elsewhere_are_found_from_beside_the_project(
    project: Workspace, tmp_path_factory: pytest.TempPathFactory
):
    album = tmp_path_factory.mktemp("disk")
    (album / "cat.png").write_text("cat")
    written = Path("params.yaml").read_text()
    behind, outside = Path("album"), Path("..", f"album-of-{project.root.name}")
    for link in (behind, outside):
        link.symlink_to(album)
        Path("params.yaml").write_text(written.replace("  root: photos", f"  root: {link}"))
        beside = workspace_with_seed(project, 7)
        assert (beside.root / link / "cat.png").read_text() == "cat"
    workspace_with_seed(project, 7)  # again, now that its link is there
    assert (album / "cat.png").exists()
    outside.unlink()


def test_a_workspace_that_was_thrown_away_is_made_anew(project: Workspace):
    beside = workspace_with_seed(project, 7)
    shutil.rmtree(beside.root)  # and not by git worktree remove
    again = workspace_with_seed(project, 7)
    assert again.root == beside.root
    assert (again.root / "new.py").exists()
    assert again.reproduce("shard", lambda _: None).status == "cached"


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "", ".hidden"])
def test_a_profile_that_is_no_folders_name_is_refused(name: str):
    assert folder_name({"profile": "my.own-1"}).startswith("my.own-1-")
    with pytest.raises(UserError, match=r"profile: .* can't name"):
        folder_name({"profile": name})


def test_unfinished_work_stays_and_new_code_arrives(project: Workspace):
    beside = workspace_with_seed(project, 7)
    (beside.root / "runs/pretrain").mkdir(parents=True)
    (beside.root / "runs/pretrain/last.pt").touch()
    (beside.root / "dvc.lock").write_text("theirs")
    Path("new.py").write_text("changed")
    again = workspace_with_seed(project, 7)
    assert (again.root / "runs/pretrain/last.pt").exists()
    assert (again.root / "dvc.lock").read_text() == "theirs"
    assert (again.root / "new.py").read_text() == "changed"
    assert workspace_with_seed(project, 8).root != again.root


def test_unknown_run_is_refused_with_those_there_are(project: Workspace):
    beside = workspace_with_seed(project, 7)
    with pytest.raises(UserError, match=f"no run x in .*; there are: {beside.root.name}"):
        apply(project, "x")


def test_a_profile_needs_no_params_of_the_projects_own(checkout: Path):
    Path("params.yaml").unlink()
    git("add", "-A")
    git("commit", "-qm", "first")
    beside = workspace_for(Workspace.here(), ChainParameters(profile="smoke"))
    assert beside.root.name.startswith("smoke-")
    assert load_params(beside.root / "params.yaml").profile == "smoke"


def test_project_without_a_commit_is_told_what_to_do(checkout: Path):
    with pytest.raises(UserError, match=r"has no git commit(.|\n)*git commit"):
        workspace_with_seed(Workspace.here(), 7)
