"""Pictures for the docs, of the real pages: `python tests/served/screenshots.py URL RUN`.

URL of a Prefect server, RUN the id of one of its flow runs, best one that is over.
"""

import io
import json
import shutil
import sys
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

INTO = Path(__file__).resolve().parents[2] / "pipeline/docs/pictures"
WIDTH, HEIGHT = 1280, 860
SETTLE_SECONDS = 4.0  # graphs and charts move into place


def main() -> None:
    url, run = sys.argv[1].rstrip("/"), sys.argv[2]
    artifacts = artifacts_of(url, run)
    pages = {
        "prefect-runs": ("light", "/runs"),
        "prefect-run": ("light", f"/runs/flow-run/{run}"),
        "prefect-run-dark": ("dark", f"/runs/flow-run/{run}"),
        "prefect-what-was-run": ("light", f"/artifacts/artifact/{artifacts['what-was-run']}"),
    }
    if "results" in artifacts:
        pages["prefect-results"] = ("light", f"/artifacts/artifact/{artifacts['results']}")
    if "pictures-pretrain" in artifacts:
        shown = artifacts["pictures-pretrain"]
        pages["prefect-curves-dark"] = ("dark", f"/artifacts/artifact/{shown}")
    with sync_playwright() as driver:
        program = shutil.which("chromium")
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (scheme, path) in pages.items():
            file = INTO / f"{name}.png"
            file.write_bytes(small(picture_of(browser, url + path, scheme)))
            sys.stdout.write(f"{file} {file.stat().st_size // 1000} kB\n")
        browser.close()


def artifacts_of(url: str, run: str) -> dict[str, str]:
    """The run's artifacts, key to id."""
    asked = {"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 200}
    request = urllib.request.Request(
        f"{url}/api/artifacts/filter",
        data=json.dumps(asked).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return {one["key"]: one["id"] for one in json.load(answer)}


def picture_of(browser: Browser, address: str, scheme: str) -> bytes:
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.add_init_script(f"localStorage.setItem('color-scheme', JSON.stringify('{scheme}'))")
    page.goto(address)
    page.wait_for_timeout(1000 * SETTLE_SECONDS)
    content = page.screenshot()
    page.close()
    return content


def small(png: bytes) -> bytes:
    """The same with 128 colours: a screenshot has few more, and a README is read over a line."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
