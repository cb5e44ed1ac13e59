"""What is asked for on the form: looked at when the run starts, and not when its turn has come."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.holder import hold
from tests.served.conftest import Served, Server, wait_for

pytestmark = pytest.mark.flow


def test_a_misspelt_override_is_told_while_another_run_works(
    tmp_path: Path, root: Path, server: Server, serve: Callable[[Path], Served]
):
    shutil.copy(root / "pipeline/profiles/smoke.yaml", tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    served = serve(tmp_path)
    with hold(tmp_path, "flow run 'first'", wait=False):
        run = served.create_run(overrides={"pretrain.sead": 1})
        wait_for(lambda: server.state(run) == "Failed", 90, "the failure")
    assert "pretrain.sead: no such key" in server.run(run)["state"]["message"]
