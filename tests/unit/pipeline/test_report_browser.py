"""The report as a browser shows it: no error, no request, nothing wider than a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.build import build_report
from tests.unit.pipeline.study_files import with_sizes, write_result, write_study

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESK, PAPER = 390, 1280, 703  # pixels across; A4 less its margins
# What reaches beyond the page's right edge, other than inside what scrolls by itself.
TOO_WIDE = """() => [...document.querySelectorAll('main *')]
    .filter(e => !e.closest('.scroll, pre, svg') && e.offsetParent !== null)
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => `${e.tagName} ${e.className}: ${(e.textContent || '').slice(0, 40)}`)"""
# The text of each svg, as far as it leaves the window.
CUT_TEXT = """() => [...document.querySelectorAll('svg text')]
    .filter(e => e.getClientRects().length)
    .map(e => [e.textContent, e.getBoundingClientRect()])
    .filter(([_, box]) => box.right > innerWidth + 1 || box.left < -1)
    .map(([words, _]) => words)"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, big, small = tmp_path_factory.mktemp("browser"), "r10_1x_sk0", "r10_0.0625x_sk0"
    params = with_sizes(students=[small])
    write_study(root, params)
    for method in ("supervised", "finetune_layer_1"):
        write_result(root, params, method, "10_per_class", [0.8, 0.81, 0.79], size=big)
    for teacher in ("own", big):
        tests, student = [0.7, 0.71, 0.69], (teacher, small)
        write_result(root, params, "student", "10_per_class", tests, student=student)
    build_report(root, params)
    return root / "report/index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def told() -> list[str]:
    """What the browser complained of, and every address that it asked for."""
    return []


def opened(browser: Any, report: Path, told: list[str], **how: Any) -> Any:
    page = browser.new_page(**how)
    page.on("console", lambda message: told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on("requestfailed", lambda request: told.append(f"failed: {request.url[:80]}"))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("data:", "file:"))
            else told.append(f"request: {request.url[:80]}")
        ),
    )
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_page_opens_without_an_error_and_fits(
    browser: Any, report: Path, told: list[str], width: int, scheme: str
):
    size = {"width": width, "height": 844}
    page = opened(browser, report, told, viewport=size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(CUT_TEXT) == []
    assert told == []
    page.close()


def colours(page: Any) -> tuple[str, str]:
    style = "getComputedStyle(document.body)"
    return page.evaluate(f"{style}.backgroundColor"), page.evaluate(f"{style}.color")


def test_dark_is_dark_and_print_is_white(browser: Any, report: Path, told: list[str]):
    page = opened(browser, report, told, color_scheme="dark")
    assert colours(page) == ("rgb(20, 23, 27)", "rgb(232, 234, 237)")
    page.emulate_media(media="print", color_scheme="dark")
    assert colours(page) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    page.close()


def test_what_is_printed_fits_the_paper(browser: Any, report: Path, told: list[str]):
    page = opened(browser, report, told, viewport={"width": PAPER, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate(TOO_WIDE.replace(".scroll, pre, ", "")) == []
    assert page.evaluate(CUT_TEXT) == []
    wide = page.locator("svg.wide")  # the plots of a phone would fill a sheet each
    assert wide.count() > 0
    assert all(plot.is_visible() for plot in wide.all())
    page.close()


def test_a_number_leads_to_its_run_and_that_to_its_record(
    browser: Any, report: Path, told: list[str]
):
    page = opened(browser, report, told)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = false })")
    page.locator("table.results a").first.click()
    row = page.locator("tr:target")
    assert row.is_visible()  # its closed section has opened
    row.locator("a").click()
    assert page.locator("details:target").get_by_text("Data fingerprint").count() == 1
    page.close()


def test_page_prints(browser: Any, report: Path, told: list[str]):
    page = opened(browser, report, told, color_scheme="dark")
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert 3 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 60
    assert told == []
    page.close()
