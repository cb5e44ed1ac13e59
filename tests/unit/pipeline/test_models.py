"""Versions of products: made in one clone, listed, fetched and rolled back in another."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.dvc import config_text
from pipeline.registry import Registry, raised
from stages.errors import UserError
from stages.records import write_json

GRAPH = """
stages:
  finetune:
    matrix: {fraction: ["0.1"]}
    cmd: >-
      mkdir -p artifacts/finetune/0.1 &&
      cp knobs artifacts/finetune/0.1/weights && cp scores metrics/finetune/0.1.json
    deps: [knobs, scores]
    outs: [artifacts/finetune/0.1]
    metrics: [metrics/finetune/0.1.json: {cache: false}]
artifacts:
  finetuned: {path: artifacts/finetune/0.1, type: model}
  embeddings: {path: artifacts/embeddings, type: data}
"""


def git(*words: str) -> None:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True)


def accuracies(test: float, validation: float) -> dict[str, dict[str, float]]:
    return {
        "test_accuracy": {"mean": test, "std": 0.004},
        "validation_accuracy": {"mean": validation, "std": 0.004},
    }


def train(weights: str, test_accuracy: float) -> None:
    """A run of the chain: validation chooses layer 1, whatever the test says of layer 0."""
    Path("knobs").write_text(weights)
    scores = {
        "finetune_layer_0": accuracies(0.99, 0.5),
        "finetune_layer_1": accuracies(test_accuracy, 0.9),
        "seconds": 1.5,
    }
    write_json(Path("scores"), scores)
    dvc("repro", "-q")


def ask(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", *words])
    assert not ended.value.code


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A clone whose chain has run and is committed."""
    here = tmp_path_factory.mktemp("made") / "here"
    (here / ".dvc").mkdir(parents=True)
    shutil.copy(root / ".dvc/config", here / ".dvc/config")
    with contextlib.chdir(here):
        git("init", "--quiet", "--initial-branch=main")
        Path("dvc.yaml").write_text(GRAPH)
        Path(".gitignore").write_text("/artifacts/\n/.dvc/cache\n/.dvc/tmp\n")
        write_json(Path("metrics/shard.run.json"), {"fingerprint": "0123456789abcdef"})
        Path("metrics/finetune").mkdir()
        train("first", 0.801)
        git("add", "-A")
        git("commit", "-qm", "first")
    return here


@pytest.fixture
def trained(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That clone, a copy of its own for each test, and the current folder."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "Test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.org")
    here = Path(shutil.copytree(made_once, tmp_path / "here"))
    monkeypatch.chdir(here)
    return here


def test_versions_are_made_here_and_listed_fetched_and_rolled_back_in_another_clone(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # Made before the remote was configured: what this commit says of remotes is not asked.
    ask("register", "finetuned")
    assert "its files are on this machine only" in capsys.readouterr().out
    dvc("remote", "add", "-q", "-d", "storage", "../storage")
    dvc("push", "-q")
    train("second", 0.823)
    with pytest.raises(UserError, match=r"not as committed:\n.*dvc.lock(.|\n)*git commit"):
        main(["models", "register", "finetuned"])
    git("add", "-A")
    git("commit", "-qm", "second")
    capsys.readouterr()
    ask("register", "finetuned")
    assert capsys.readouterr().out.startswith("registered finetuned v1.1.0 at commit ")
    ask("use", "finetuned@v1.0.0", "--stage", "prod")
    ask("use", "finetuned@v1.1.0", "--stage", "prod")
    git("push", "-q", "--set-upstream", bare(trained), "main", "--tags")

    git("clone", "-q", bare(trained), "../there")
    monkeypatch.chdir(trained.parent / "there")
    capsys.readouterr()
    ask()
    header, new, old, *rest = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["name", "version", "stages"]
    assert new.split()[:7] == [
        "finetuned",
        "v1.1.0",
        "prod",
        "82.3",
        "±",
        "0.4",
        "(finetune_layer_1)",
    ]
    assert old.split()[:7] == ["finetuned", "v1.0.0", "-", "80.1", "±", "0.4", "(finetune_layer_1)"]
    assert new.split()[-3:] == ["01234567", "6", "bytes"]
    assert rest[0] == "no version yet of: embeddings"

    ask("get", "finetuned@v1.0.0", "--into", "old/weights-of-v1")
    ask("get", "finetuned@prod", "--into", "new")
    assert Path("old/weights-of-v1/weights").read_text() == "first"
    assert Path("new/weights").read_text() == "second"
    assert sorted(path.name for path in Path("old").iterdir()) == ["weights-of-v1"]
    with pytest.raises(UserError, match="new exists"):
        main(["models", "get", "finetuned", "--into", "new"])

    capsys.readouterr()
    ask("rollback", "finetuned", "--stage", "prod", "--push")
    assert capsys.readouterr().out.startswith("prod of finetuned is v1.0.0 again, test accuracy 80")
    with pytest.raises(UserError, match="its first version: there is nothing"):
        main(["models", "rollback", "finetuned", "--stage", "prod"])
    monkeypatch.chdir(trained)
    assert Registry(trained).find("finetuned@prod").version == "v1.1.0"
    git("fetch", "-q", "--tags", bare(trained))
    assert Registry(trained).find("finetuned@prod").version == "v1.0.0"


def bare(trained: Path) -> str:
    """The repository that both clones know."""
    folder = trained.parent / "origin.git"
    if not folder.exists():
        git("init", "-q", "--bare", "--initial-branch=main", str(folder))
    return str(folder)


def test_bytes_that_are_nowhere_are_named_and_nothing_half_fetched_is_left(
    trained: Path, capsys: pytest.CaptureFixture[str]
):
    ask("register", "finetuned", "--version", "v2.0.0")
    shutil.rmtree(".dvc/cache")
    with pytest.raises(UserError, match=r"finetuned v2.0.0 can't be fetched:\n(.|\n)*not set"):
        main(["models", "get", "finetuned", "--into", "got/it"])
    assert list(Path("got").iterdir()) == []


def test_a_version_is_not_made_of_bytes_that_are_nowhere(trained: Path):
    shutil.rmtree(".dvc/cache")
    dvc("remote", "add", "-q", "-d", "storage", "storage")
    with pytest.raises(UserError, match=r"no version was made(.|\n)*Missing cache files"):
        main(["models", "register", "finetuned"])
    assert Registry(trained).versions() == []


def test_a_version_is_not_made_when_its_bytes_do_not_reach_the_remote(trained: Path):
    Path("file").touch()
    dvc("remote", "add", "-q", "-d", "storage", "file/in-a-file")
    with pytest.raises(UserError, match=r"no version was made, for artifacts/finetune/0.1 can't"):
        main(["models", "register", "finetuned"])
    assert Registry(trained).versions() == []


def test_what_the_params_no_longer_ask_for_is_no_result_of_this_commit(trained: Path):
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text.replace('fraction: ["0.1"]', 'fraction: ["0.2"]'))
    git("commit", "-qam", "another fraction")
    with pytest.raises(UserError, match=r"of stage finetune@0.1, which params.yaml does not ask"):
        main(["models", "register", "finetuned"])
    assert Registry(trained).versions() == []


def test_without_git_or_a_repository_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(GRAPH)
    with pytest.raises(UserError, match="not a git repository"):
        main(["models"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not on PATH"):
        main(["models"])


def test_an_archive_without_git_is_told_before_dvc_is(tmp_path: Path, root: Path):
    shutil.copy(root / "Makefile", tmp_path)
    words = ["make", "reproduce", "PYTHON=true"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not a git repository" in done.stderr
    assert "git init && git add --all" in done.stderr


def mistakes() -> list[tuple[tuple[str, ...], str]]:
    return [
        (("register", "finetunde"), "names no artifact finetunde; it names: finetuned, embeddings"),
        (("register", "embeddings"), "dvc.lock has no artifacts/embeddings yet"),
        (("register", "finetuned", "--version", "2"), r"written v1.2.3 \(you wrote 2\)"),
        (("register", "finetuned"), "already registered in this commit"),
        (("get", "finetuned@v9.0.0", "--into", "x"), r"no stage v9.0.0; it has: v1.0.0 \(prod\)"),
        (("get", "other", "--into", "x"), r"no version of other(.|\n)*Registered: finetuned"),
        (("use", "finetuned", "--stage", "prod"), "prod of finetuned is v1.0.0 already"),
        (("use", "finetuned", "--stage", "Prod!"), "small letters, digits and dashes"),
        (("rollback", "finetuned", "--stage", "dev"), "dev of finetuned was never set"),
    ]


def test_mistakes_end_with_what_there_is(trained: Path):
    ask("register", "finetuned")
    ask("use", "finetuned", "--stage", "prod")
    for words, message in mistakes():
        with pytest.raises(UserError, match=message):
            main(["models", *words])


def test_going_back_twice_does_not_go_forward(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    registry = Registry(trained)
    for number in (1, 2, 3):
        git("commit", "-q", "--allow-empty", "-m", str(number))
        ask("register", "finetuned", "--bump", "major")
        registry.assign("finetuned", "prod")
    git("tag", "zzz")  # nobody's version, without a message, and listed last
    assert "the same files as v2.0.0, v1.0.0" in capsys.readouterr().out
    # Three assignments may fall into one second: their numbers give the order.
    assert [registry.roll_back("finetuned", "prod").version for _ in range(2)] == [
        "v2.0.0",
        "v1.0.0",
    ]
    ask("list", "finetuned", "--json")
    listed = json.loads(capsys.readouterr().out)
    assert [(one["version"], one["stages"]) for one in listed] == [
        ("v3.0.0", []),
        ("v2.0.0", []),
        ("v1.0.0", ["prod"]),
    ]


@pytest.mark.parametrize(
    ("bump", "after"), [("major", "v2.0.0"), ("minor", "v1.5.0"), ("patch", "v1.4.3")]
)
def test_the_next_version(bump: str, after: str):
    assert raised("v1.4.2", bump) == after


def test_dvcs_settings_become_a_file_of_settings():
    listed = "core.remote=a.b\nremote.a.b.url=s3://x/y\ncache.dir=old\ncache.dir=new\n"
    assert config_text(listed) == (
        "[core]\n    remote = a.b\n['remote \"a.b\"']\n    url = s3://x/y\n[cache]\n    dir = new\n"
    )
