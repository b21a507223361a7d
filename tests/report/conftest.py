"""A results folder, its page, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import write_report
from tests.report.results_folder import make_results, page_arguments

# Debian's package first; Playwright's own browsers are not downloaded
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="session")
def results_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in small; copy it before changing it."""
    return make_results(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def page_file(results_folder: Path) -> Path:
    """Its report, pictures embedded."""
    assert write_report.main(page_arguments(results_folder)) == 0
    return results_folder / "results/report/index.html"


@pytest.fixture
def run_folder(results_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(results_folder, tmp_path / "run"))


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium, started once."""
    if CHROMIUM is None:
        pytest.skip("no chromium here; install Debian's package chromium")
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox as root, which continuous integration is
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture
def open_page(browser, tmp_path: Path):
    """Opens a page offline from disk; the test fails on any console error, page error or request beyond the disk."""
    contexts, faults = [], []

    def open_(path: Path, fragment: str = "", width: int = 1400, dark: bool = False, wait: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url),
        )
        page.set_default_timeout(15_000)
        page.goto(path.resolve().as_uri() + fragment)
        if wait:
            page.wait_for_selector("html[data-ready]")
            if not fragment:  # cards are filled when they come near the screen
                page.evaluate("document.querySelector('#questions').scrollIntoView()")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults
