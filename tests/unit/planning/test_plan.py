"""A plan before a run: counts, work and warnings; one real measurement of a tiny profile."""

import json
from dataclasses import replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.cli import main as pipeline
from stages import plan, shard
from stages.data.images import encode_png
from stages.params import Params, check_params, load_params
from stages.planning import rates
from stages.planning.amounts import count, duration, size
from stages.planning.counts import Counts, count_images
from stages.planning.estimate import Plan, StagePlan, makespan, shares_of, states_kept, warnings_of
from stages.planning.machine import Hardware
from stages.planning.rates import Machine
from stages.planning.table import as_text
from stages.planning.trainings import Work
from stages.planning.work import work_of
from stages.training.runtime import Runtime

FASHION = Counts(55_000, 55_000, 5_000, 10_000, 10, 2_562, "test")


@pytest.fixture
def workspace(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures and params of a tiny training, and no shards yet."""
    params = yaml.safe_load((root / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"source": "folder", "root": "pictures", "validation_images": 6}
    params["data"] |= {"test_fraction": 0.2, "train_limit": None, "test_limit": None}
    params["data"] |= {"image_size": 16, "images_per_shard": 20}
    params["runtime"] |= {"device": "cpu", "threads": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "unlabelled"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            (tmp_path / f"pictures/{name}/{number}.png").write_bytes(encode_png(pixels))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params_of(root: Path, profile: str) -> Params:
    text = (root / f"pipeline/profiles/{profile}.yaml").read_text(encoding="utf-8")
    return check_params(yaml.safe_load(text))


def test_images_are_counted_as_the_stage_shard_will_split_them(workspace: Path):
    before = count_images(load_params())
    shard.main()
    after = count_images(load_params())
    assert (before.train, before.labelled, before.validation, before.test) == (72, 42, 6, 12)
    assert replace(before, known_from="", image_bytes=0) == replace(
        after, known_from="", image_bytes=0
    )
    assert before.image_bytes == pytest.approx(after.image_bytes, rel=0.5)


def test_shards_of_other_params_are_not_counted(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    shard.main()
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "pipeline.cli._in_a_process_with_torch", lambda _, words: asked.append(words) or 0
    )
    made_with = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    lock = {"stages": {"shard": {"params": {"params.yaml": {"data": made_with["data"]}}}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    with pytest.raises(SystemExit):
        pipeline(["plan"])
    made_with["data"]["test_fraction"] = 0.5
    Path("params.yaml").write_text(yaml.safe_dump(made_with), encoding="utf-8")
    with pytest.raises(SystemExit):
        pipeline(["plan"])
    assert asked == [[], ["--without-shards"]]
    params = load_params()
    assert count_images(params).test == 12
    assert count_images(params, by_shards=False).test == 30


def test_images_that_are_not_there_are_assumed_and_that_is_said(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    counts = count_images(params_of(root, "imagenet"))
    assert counts.are_assumed
    assert "data/imagenet is not there" in counts.known_from
    assert (counts.train, counts.test, counts.classes) == (1_271_167, 50_000, 1000)
    known = count_images(params_of(root, "quick"))
    assert (known.train, known.validation, known.test) == (55_000, 5_000, 10_000)
    assert not known.are_assumed


def test_the_work_of_quick(root: Path):
    works = {work.stage: work for work in work_of(params_of(root, "quick"), FASHION)}
    assert (works["pretrain"].steps, works["pretrain"].images) == (4280, 4280 * 256)
    assert works["finetune@0.01"].steps == 9 * 500
    assert works["finetune@10_per_class"].images == 9 * (250 * 100 + 15_000)
    assert works["supervised@0.1"].steps == (4 + 2) * 1000
    assert sum(training.nets for training in works["distill_same@0.1"].trainings) == 3
    assert works["distill_same@0.1"].answered[0][2] == 3 * 55_000 * 3
    assert works["shard"].sharded == 70_000


def values(params: Params, template: str) -> list[str]:
    """Of a matrix of dvc.yaml: "${finetune.label_fractions}"."""
    return reduce(getattr, template.strip("${}").split("."), params)  # ty: ignore


@pytest.mark.parametrize("profile", ["smoke", "study", "gpu", "imagenet", "imagenet_v1"])
def test_every_stage_of_the_graph_has_its_work(root: Path, profile: str):
    params = params_of(root, profile)
    graph = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    named = {
        "@".join([name, "-".join(item)] if item else [name])
        for name, stage in graph.items()
        for item in product(*(values(params, of) for of in stage.get("matrix", {}).values()))
    }
    assert {work.stage for work in work_of(params, FASHION)} == named


def test_the_command_measures_a_tiny_profile_and_leaves_nothing_behind(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(rates, "PROBE_SECONDS", 0.05)
    before = sorted(workspace.rglob("*"))
    monkeypatch.setattr("sys.argv", ["plan", "--json"])
    plan.main()
    planned: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert sorted(workspace.rglob("*")) == before
    stages = {stage["stage"]: stage for stage in planned["stages"]}
    assert all(stage["seconds"] > 0 for stage in stages.values())
    assert planned["seconds"] == pytest.approx(sum(s["seconds"] for s in stages.values()))
    assert stages["pretrain"]["flops"] > stages["gallery"]["flops"] > 0
    assert stages["pretrain"]["steps"] == 60
    assert planned["warnings"] == []
    monkeypatch.setattr("sys.argv", ["plan", "--without-shards"])
    plan.main()
    out = capsys.readouterr().out
    assert "72 training, 6 validation and 12 test images (the files below pictures)" in out
    assert "distill_small@10_per_class" in out


def test_a_mistake_in_params_shows_before_torch_is_started(
    workspace: Path, capfd: pytest.CaptureFixture[str]
):
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("temperature:", "temprature:", 1))
    with pytest.raises(Exception, match="temprature"):
        pipeline(["plan"])
    assert capfd.readouterr().out == ""


def a_plan(**stage: Any) -> Plan:
    one = StagePlan("pretrain", 1, 10, 100, 1e9, 1000, 10**9, 10**9, 60.0)
    hardware = Hardware(2, 2, None, 0, "this machine", 4 * 10**9, 10**10, 0.0)
    return Plan("quick", FASHION, hardware, [replace(one, **stage)], 0, False)


def test_what_is_too_much_is_named_with_a_cheaper_choice(root: Path):
    params = params_of(root, "quick")
    assert warnings_of(params, a_plan()) == []
    (memory,) = warnings_of(params, a_plan(memory_bytes=5 * 10**9))
    assert memory.startswith("pretrain: about 5 GB of memory, and this machine has 4 GB")
    assert "runtime.micro_batch" in memory
    assert "pretrain.batch_size" in memory
    (disk,) = warnings_of(params, a_plan(disk_bytes=2 * 10**10))
    assert "20 GB of disk, and 10 GB are free" in disk
    (days,) = warnings_of(params, a_plan(seconds=10 * 86_400.0))
    assert "pretrain would take about 10 days here" in days
    assert "pretrain.duration: 2 epochs is a day" in days
    assert "a GPU" in days
    planned = a_plan()
    two_gpus = replace(planned.hardware, gpu="some GPU", gpus=2)
    eight = params.model_copy(
        update={"runtime": params.runtime.model_copy(update={"processes": 8})}
    )
    (processes,) = warnings_of(eight, replace(planned, hardware=two_gpus))
    assert "runtime.processes is 8, and there are GPUs for 2" in processes


def test_hosts_share_pretrainings_images_and_time(root: Path):
    params = params_of(root, "quick")
    shared = params.runtime.model_copy(update={"hosts": 2, "processes": 2})
    of_two_hosts = params.model_copy(update={"runtime": shared})
    works = {work.stage: work for work in work_of(params, FASHION)}
    cpu = Runtime(torch.device("cpu"))
    for asked, images, shares in ((params, 256, 1), (of_two_hosts, 64, 2)):
        machine = Machine(asked, FASHION, cpu, is_busy=False)
        assert machine.share == images
        assert shares_of(asked, machine, works["pretrain"].trainings[0]) == shares
        assert shares_of(asked, machine, works["finetune@0.1"].trainings[0]) == 1


def test_room_is_for_every_state_that_lies_on_the_disk_at_a_time(root: Path):
    params = params_of(root, "quick")
    works = {work.stage: work for work in work_of(params, FASHION)}
    pretrain, tuning = (works[one].trainings[0] for one in ("pretrain", "finetune@0.1"))
    rolls_back = params.pretrain.model_copy(update={"on_non_finite": "rollback"})
    stops = params.pretrain.model_copy(update={"on_non_finite": "stop"})
    for asked, states in ((rolls_back, 6), (stops, 4)):
        changed = params.model_copy(update={"pretrain": asked})
        assert states_kept(changed, pretrain) == states
        assert states_kept(changed, tuning) == 3


def test_keys_that_warnings_name_exist(root: Path):
    """A warning must not send anyone to a param that is not there."""
    params = params_of(root, "quick")
    for name in ("runtime.micro_batch", "pretrain.batch_norm_images", "runtime.recompute"):
        section, key = name.split(".")
        assert key in type(getattr(params, section)).model_fields


def test_workers_take_the_next_net_when_they_are_free():
    assert makespan([4, 1, 1, 1], 2) == 4
    assert makespan([3, 3, 3], 2) == 6
    assert makespan([1, 2, 3], 1) == 6


def test_a_probe_that_learns_by_sgd_costs_its_images(root: Path):
    works = {work.stage: work for work in work_of(params_of(root, "imagenet_v1"), FASHION)}
    probe: Work = works[f"probe@{params_of(root, 'imagenet_v1').finetune.label_fractions[0]}"]
    assert probe.probed == ()
    assert probe.answered[0][2] > 0


@pytest.mark.parametrize(("cores", "words"), [(1, "on 1 core: 55,000"), (2, "on 2 cores: 55,000")])
def test_the_machine_of_a_plan_reads_well(cores: int, words: str):
    planned = a_plan()
    assert words in as_text(replace(planned, hardware=replace(planned.hardware, cores=cores)), 1.0)


def test_amounts_read_well():
    assert [duration(s) for s in (5, 362, 4e4, 4e5, 1e9)] == [
        "5 s",
        "6 min 02 s",
        "11.1 h",
        "5 days",
        "32 years",
    ]
    assert [size(n) for n in (2_000, 179e6, 1.7e9)] == ["2 kB", "179 MB", "1.7 GB"]
    assert [count(n) for n in (0, 4280, 1_095_680, 4.9e13)] == ["-", "4,280", "1.1 M", "49 T"]


@pytest.mark.slow
def test_imagenet_on_a_cpu_is_answered_in_bounded_memory(
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    text = (root / "pipeline/profiles/imagenet.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("device: auto", "device: cpu"), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["plan"])
    plan.main()
    out = capsys.readouterr().out
    assert "Too large to try: pretrain's time is from its network at width" in out
    assert "pretrain would take about" in out
    assert "of disk, and" in out or "free" in out
