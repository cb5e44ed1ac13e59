"""Which Prefect server runs may be taken from."""

import pytest

from pipeline.serving import check_server, is_loopback, serve
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
