"""A headless browser for tests of pages: Debian's chromium, driven by selenium."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from keyface_cli.web.page import Page

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_WAIT_S = 60.0  # for a slow machine; what is waited for comes in a moment


@contextmanager
def serving(page: Page) -> Iterator[str]:
    """Serve a page in a thread and yield its address."""
    with page:
        thread = threading.Thread(target=page.serve)
        thread.start()
        try:
            yield page.url
        finally:
            page.stop()
            thread.join(_WAIT_S)
            assert not thread.is_alive()


@contextmanager
def open_browser() -> Iterator[Chrome]:
    """Start a headless browser; the test is skipped where none is installed.

    Where `KEYFACE_BROWSER` is set, as continuous integration does after installing one, a missing
    browser fails the test instead.
    """
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        reason = "no browser: apt-get install chromium chromium-driver"
        if os.environ.get("KEYFACE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = program
        for argument in (
            "--headless=new",
            "--no-sandbox",  # refuses to run as root otherwise, as in a container
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--no-proxy-server",
            "--mute-audio",
            "--autoplay-policy=no-user-gesture-required",
            "--window-size=1200,800",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        logs = {"performance": "ALL", "browser": "ALL"}
        options.set_capability("goog:loggingPrefs", logs)
        browser = Chrome(options=options, service=Service(driver))
        try:
            yield browser
        finally:
            browser.quit()


def wait_for(browser: Chrome, script: str) -> Any:
    """Return the value of a JavaScript expression once it is true."""
    return WebDriverWait(browser, _WAIT_S).until(lambda b: b.execute_script(f"return {script}"))


def requested(browser: Chrome) -> set[str]:
    """Return the addresses that pages have asked for since the last call.

    Without those of the browser's own first tab (chrome://newtab), and without `data:`, which asks
    nobody.
    """
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    return {url for url in urls if not url.startswith(("chrome:", "chrome-untrusted:", "data:"))}


def complaints(browser: Chrome) -> list[str]:
    """Return what the browser's console has said since the last call: errors, blocked requests."""
    return [entry["message"] for entry in browser.get_log("browser")]


def screenshot(browser: Chrome, path: Path) -> None:
    """Save what the window shows; for whoever looks into a failing test."""
    browser.save_screenshot(str(path))
