"""Report and demo page in a real browser, where Playwright and Chromium are installed.

The first is an extra of the package, `browser`, the other of the system. With REDHEART_SCREENSHOTS=DIR the pictures
are kept, for people to look at.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, environment

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

PHONE = {"width": 390, "height": 844}


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a phone's size; a message of the console above a remark fails the test, as does any request."""
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=PHONE)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        yield page
        browser.close()
    assert complaints == []


def keep(page: Any, tmp_path: Path, name: str) -> None:
    """A picture of the whole page."""
    folder = Path(os.environ.get("REDHEART_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def test_the_report_reads_on_a_phone_without_a_network(page: Any, finished_run: Path, tmp_path: Path) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    address = (finished_run / "report" / "report.html").as_uri()
    page.goto(address)
    assert requested[0] == address and all(url.startswith("data:") for url in requested[1:])
    assert page.locator("h1").inner_text().startswith("Red Heart")
    # Figures are there, and nothing is wider than the screen but what scrolls by itself.
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.locator("img").count() >= 3
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    keep(page, tmp_path, "report")


def test_the_demo_takes_a_text_and_shows_bars(page: Any, finished_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "redheart", "demo", str(finished_run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()) as process:
        try:
            assert process.stdout is not None
            page.goto(process.stdout.readline().split()[0])
            page.locator("#text").fill("나는 오늘 정말 행복하다.")
            page.locator("#send").click()
            page.locator("#result >> text=joy").wait_for(timeout=60_000)
            assert page.locator("#error").inner_text() == ""
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            keep(page, tmp_path, "demo")
        finally:
            process.terminate()
