"""Which Prefect server runs may be taken from."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline import profiles, serving
from pipeline.cli import main
from pipeline.serving import check_server, is_loopback, serve, wait_for_server
from stages.errors import UserError


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:4200/api", True),
        ("http://localhost:4200/api", True),
        ("http://[::1]:4200/api", True),
        ("http://127.0.0.1.example.org/api", False),
        ("http://localhost.example.org/api", False),
        ("http://0.0.0.0:4200/api", False),
        ("http://10.0.0.7:4200/api", False),
        ("https://prefect.example.org/api", False),
    ],
)
def test_only_this_machine_counts_as_loopback(url: str, here: bool):
    assert is_loopback(url) == here


def test_a_server_on_this_machine_needs_no_password():
    url = "http://127.0.0.1:4200/api"
    assert check_server(url, has_password=False, unprotected=False) == []


def test_a_server_on_a_network_without_a_password_is_refused():
    with pytest.raises(UserError, match=r"no password(.|\n)*PREFECT_API_AUTH_STRING"):
        check_server("https://10.0.0.7/api", has_password=False, unprotected=False)


def test_a_server_that_is_not_set_is_asked_for():
    with pytest.raises(UserError, match="prefect server start"):
        check_server(None, has_password=False, unprotected=False)


def test_a_schedule_that_is_no_cron_line_is_refused_before_the_server_is_asked():
    with pytest.raises(UserError, match=r"--cron 'every night' is no time(.|\n)*UTC"):
        serve("every night")


def test_what_others_can_read_is_warned_of():
    def warnings(url: str, has_password: bool) -> int:
        return len(check_server(url, has_password=has_password, unprotected=True))

    assert warnings("https://10.0.0.7/api", True) == 0
    assert warnings("http://10.0.0.7:4200/api", True) == 1
    assert warnings("http://10.0.0.7:4200/api", False) == 2


class Healthy(BaseHTTPRequestHandler):
    """Answers as a Prefect server does that is asked whether it is there."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_a_server_that_is_just_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "ASK_EVERY_SECONDS", 0.05)
    port = free_port()
    server = HTTPServer(("127.0.0.1", port), Healthy, bind_and_activate=False)
    server.server_bind()  # there, and nobody listens yet
    answers = threading.Timer(0.5, lambda: (server.server_activate(), server.handle_request()))
    answers.start()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        wait_for_server()
    answers.join()
    server.server_close()


def test_a_server_that_does_not_come_is_said_to_be_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "ASK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(serving, "START_SECONDS", 0.3)
    url = f"http://127.0.0.1:{free_port()}/api"
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(UserError, match=rf"{url} does not answer(.|\n)*prefect server start"),
    ):
        wait_for_server()


def test_a_run_at_a_server_that_is_gone_says_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(profiles.text_of("smoke"), encoding="utf-8")
    monkeypatch.setattr(serving, "START_SECONDS", 0.0)
    url = f"http://127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(UserError, match=rf"{url} does not answer(.|\n)*or unset PREFECT_API_URL"),
    ):
        main(["run"])


def test_a_server_that_answers_something_else_is_not_waited_for():
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    answers = threading.Thread(target=server.handle_request)
    answers.start()
    url = f"http://127.0.0.1:{server.server_port}/elsewhere/api"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(UserError, match="404"):
        wait_for_server()
    answers.join()
    server.server_close()
