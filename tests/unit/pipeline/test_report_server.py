"""The report over HTTP: it alone, from this machine alone."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipeline.report_server import start_report_server


def test_reports_are_given_out_and_nothing_else(tmp_path: Path):
    for folder, text in ((tmp_path, "mine"), (tmp_path / "runs/workspaces/smoke-1", "another")):
        (folder / "report").mkdir(parents=True)
        (folder / "report/index.html").write_text(text)
    (tmp_path / "secret").write_text("secret")
    address = start_report_server(tmp_path, port=0)
    assert address is not None
    assert address.startswith("http://127.0.0.1:")

    def get(path: str) -> str:
        with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
            return answer.read().decode()

    assert get("/") == "mine"
    assert get("/smoke-1/") == "another"
    for path in ("/secret", "/../secret", "/runs", "/smoke-2/", "/%2e%2e/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(path)


def test_port_in_use_is_no_reason_not_to_serve(tmp_path: Path):
    address = start_report_server(tmp_path, port=0)
    assert address is not None
    assert start_report_server(tmp_path, port=int(address.rpartition(":")[2])) is None
