"""The program that measures a GPU runs from end to end, small and on a CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # see gpu_jpeg
def test_every_check_holds_and_every_figure_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as where a program's folder comes first
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--tiny"])
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCHMARKS / "bench_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_gpu", program)
    spec.loader.exec_module(program)
    program.main()
    lines, _, table = capsys.readouterr().out.partition("\n\n")
    told = [json.loads(line) for line in lines.splitlines()]
    checks = [line for line in told if "check" in line]
    assert len(checks) == 7
    assert all(check.get("holds", "skipped" in check) for check in checks)
    figures = {line["name"]: line for line in told if "name" in line}
    assert {
        "compute eager",
        "compute eager against torchvision channels_last",
        "recompute blocks",
        "in two passes",
        "views on the device",
        "views + compute",
        "loader alone",
        "end to end from shards",
        "end to end from shards, decoding on the GPU",
    } <= set(figures)
    assert all(figure["images_per_second"] > 0 for figure in figures.values())
    # 2 x 1.8e9 multiplications and additions at 224 pixels, two views, there and twice back
    expected = 2 * 1.8e9 * 2 * 3 * (32 / 224) ** 2
    row = next(line for line in table.splitlines() if line.startswith("| matrix operations"))
    assert float(row.split("|")[2]) == pytest.approx(expected, rel=0.1)
