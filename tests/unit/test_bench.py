import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.cli import main as pipeline
from stages import bench, shard
from stages.bench import Measured
from stages.data.images import encode_png
from stages.errors import UserError
from stages.params import load_params

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params of a tiny training, and no shards yet."""
    params = yaml.safe_load((ROOT / "pipeline/profiles/smoke.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"source": "folder", "root": "pictures", "validation_images": 6}
    params["data"] |= {"test_fraction": 0.2, "train_limit": None, "test_limit": None}
    params["data"] |= {"image_size": 16, "images_per_shard": 20}
    params["pretrain"]["batch_size"] = 16
    params["runtime"] |= {"device": "cpu", "threads": 1, "processes": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def with_shards(workspace: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (workspace / "pictures" / name).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            (workspace / f"pictures/{name}/{number}.png").write_bytes(encode_png(pixels))
    shard.main()
    return workspace


def test_loader_network_and_both_are_measured_at_the_batch_of_one_process(with_shards: Path):
    measured = bench.measure(load_params(), seconds=0.1)
    assert measured.batch_size == 8  # 16 over two processes
    assert measured.device == "cpu"
    assert measured.threads == 1
    assert 0 <= measured.waited_share <= 1
    assert measured.loader_images_per_second > 0
    assert measured.compute_images_per_second > 0
    assert measured.images_per_second > 0
    assert measured.loader_core_seconds > 0
    assert bench.measure(load_params(), seconds=0.1, batch_size=4).batch_size == 4


def test_a_batch_of_one_is_refused(with_shards: Path):
    with pytest.raises(UserError, match="two images or more"):
        bench.measure(load_params(), seconds=0.1, batch_size=1)


def test_the_command_prints_json_and_leaves_nothing_behind(
    with_shards: Path, capfd: pytest.CaptureFixture[str]
):
    before = {path for path in with_shards.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        pipeline(["bench", "--json", "--seconds", "0.1", "--batch-size", "8"])
    assert ended.value.code == 0
    said = json.loads(capfd.readouterr().out)
    assert said["bottleneck"] in {"loader", "compute"}
    assert said["images_per_second"] > 0
    assert said["batch_size"] == 8
    assert {path for path in with_shards.rglob("*") if path.is_file()} == before


def test_without_shards_the_command_says_how_to_make_them(workspace: Path):
    words = [sys.executable, "-m", "pipeline", "bench", "--seconds", "0.1"]
    done = subprocess.run(words, cwd=workspace, env=with_root(), capture_output=True, text=True)
    assert done.returncode == UserError.exit_code
    assert "dvc repro shard" in done.stderr
    assert "Traceback" not in done.stderr


def with_root() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


MEASURED = Measured(
    device="cuda",
    batch_size=512,
    threads=8,
    cores=16,
    loader_images_per_second=8000.0,
    compute_images_per_second=2000.0,
    images_per_second=1990.0,
    waited_share=0.001,
    loader_core_seconds=0.001,
)


def seen(**changes: object) -> Measured:
    return dataclasses.replace(MEASURED, **changes)


def test_a_gpu_that_never_waits_is_the_bottleneck_itself():
    assert MEASURED.bottleneck == "compute"
    assert MEASURED.cores_to_keep_up == 2
    assert "needs 2 cores, and has them" in MEASURED.advice


def test_a_gpu_that_waits_is_told_how_many_cores_would_feed_it():
    starved = seen(waited_share=0.4, compute_images_per_second=12_000.0)
    assert starved.bottleneck == "loader"
    assert "needs 12 cores; it has 8 threads. Set runtime.threads to 0" in starved.advice
    assert "1 core;" in seen(waited_share=0.4, compute_images_per_second=10.0).advice


def test_where_all_cores_are_too_few_the_advice_is_to_do_less():
    starved = seen(waited_share=0.4, compute_images_per_second=40_000.0)
    assert "needs 40 cores; this process may use 16" in starved.advice


def test_on_a_cpu_the_larger_share_of_the_work_is_the_bottleneck():
    assert seen(device="cpu").bottleneck == "compute"
    assert "the loader takes 20% of the work" in seen(device="cpu").advice
    assert seen(device="cpu", loader_images_per_second=500.0).bottleneck == "loader"


def test_the_text_names_rates_waiting_and_bottleneck():
    text = bench.as_text(MEASURED)
    assert "loader alone       8,000.0 images/s" in text
    assert "compute alone      2,000.0 images/s" in text
    assert "both               1,990.0 images/s" in text
    assert "waited for data 0.1% of the time" in text
    assert "Bottleneck: compute." in text
