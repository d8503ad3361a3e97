"""A headless Chromium, one for all tests of a session; the conftest of a folder that uses it imports it."""

from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 60
"""How long a test waits for the browser at most, for each thing that it asks for."""


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, driven by Playwright; every wait is bounded."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install -r requirements/docs.txt"
    )
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=1000 * SECONDS)
        yield chromium
        chromium.close()
