"""A whole visit in a real Chromium: every page against real processes, nothing asked of any other host, no error on the console.

The screenshots of the visit are kept in `artefacts/` (or PIGEONHOLE_ARTEFACTS), at the width of a desk and of a phone.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright
from tests.frontend.conftest import ROOT, environment, free_port, wait_until_ready

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
ARTEFACTS = Path(os.environ.get("PIGEONHOLE_ARTEFACTS") or ROOT / "artefacts")
OURS = (
    "html-has-lang",
    "image-alt",
    "button-name",
    "link-name",
    "color-contrast",
    "document-title",
    "label",
    "list",
    "page-has-heading-one",
)
"""axe's rules that our own markup answers for; the rest of the document is Streamlit's."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed: apt-get install -y chromium")
        pytest.skip("needs chromium: apt-get install -y chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(served: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "frontend/app.py"), "--server.port", str(port)]
    folder = tmp_path_factory.mktemp("page")
    settings = environment(PIGEONHOLE_API_URL=served, PIGEONHOLE_DRIFT_URL="http://127.0.0.1:9")
    process = subprocess.Popen(command, cwd=folder, env=settings, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/_stcore/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


class Visit:
    """A tab at one width; what it asks of others is refused and written down, as is what the console says."""

    def __init__(self, page: Page, width: str) -> None:
        self.page, self.width = page, width
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.route("**/*", self._ask)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _ask(self, route: Route, request: Request) -> None:
        if urlsplit(request.url).hostname in ("127.0.0.1", None):
            route.continue_()
        else:
            self.elsewhere.append(request.url)
            route.abort()

    def settle(self) -> None:
        self.page.wait_for_timeout(700)
        expect(self.page.get_by_test_id("stStatusWidget")).to_have_count(0)

    def go(self, name: str) -> None:
        if self.width == "phone":
            self.page.get_by_test_id("stExpandSidebarButton").click()
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
        if self.width == "phone":
            self.page.wait_for_timeout(500)
        expect(self.page.get_by_role("heading", name=name, level=1)).to_be_visible()
        self.settle()

    def keep(self, name: str) -> None:
        """A screenshot of the whole page, however long, and what axe finds serious in it."""
        width, height = WIDTHS[self.width]
        whole = self.page.get_by_test_id("stMain").evaluate("element => element.scrollHeight")
        self.page.set_viewport_size({"width": width, "height": max(height, int(whole))})
        self.page.wait_for_timeout(500)
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{self.width}-{name}.png")
        self.page.set_viewport_size({"width": width, "height": height})

    def serious(self) -> list[tuple[str, str]]:
        found = Axe().run(self.page).response["violations"]
        return [
            (each["id"], each["nodes"][0]["html"][:200])
            for each in found
            if each["impact"] in ("serious", "critical") and each["id"] in OURS
        ]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_whole_visit(browser: Browser, address: str, width: str) -> None:
    context = browser.new_context(viewport={"width": WIDTHS[width][0], "height": WIDTHS[width][1]})
    visit = Visit(context.new_page(), width)
    page = visit.page
    page.goto(f"{address}/?text=where+is+my+parcel")
    expect(page.get_by_role("heading", name="delivery")).to_be_visible()
    visit.settle()
    page.get_by_role("button", name="Which words decided?").click()
    expect(page.get_by_text("speak for delivery")).to_be_visible()
    page.get_by_role("textbox", name="Text").fill("أين الطرد parcel")
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.get_by_text("This visit: 2 asked")).to_be_visible()
    visit.keep("classify")
    serious = visit.serious()
    visit.go("Batch")
    rows = "\n".join(f"{number},where is my parcel {number}" for number in range(300))
    page.locator("input[type=file]").set_input_files(
        {"name": "mail.csv", "mimeType": "text/csv", "buffer": f"id,message\n{rows}\n".encode()}
    )
    page.get_by_role("button", name="Classify 300 texts").click()
    expect(page.get_by_text("300 texts in")).to_be_visible()
    visit.settle()
    visit.keep("batch")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download 300 rows as CSV").click()
    assert len(Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()) == 301
    serious += visit.serious()
    visit.go("Model")
    visit.keep("model")
    serious += visit.serious()
    visit.go("Traffic and drift")
    visit.keep("traffic")
    page.get_by_role("tab", name="Drift").click()
    expect(page.get_by_text("drift service is not reachable")).to_be_visible()
    visit.keep("drift")
    serious += visit.serious()
    context.close()
    assert (visit.elsewhere, visit.errors, serious) == ([], [], [])
