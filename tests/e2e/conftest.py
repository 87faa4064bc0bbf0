"""A real browser before the real stack: two versions in a registry, a log of real answers, `python -m frontend.up` over both."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright
from tests.conftest import tiny_rows
from tests.frontend.conftest import ROOT, environment, wait_until_ready

from pigeonhole.bundle import MANIFEST, REFERENCE, open_bundle, seal
from pigeonhole.port import free_port
from pigeonhole.registry import Registry

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
AXE = ROOT / ".github/axe/node_modules/axe-core/axe.min.js"
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SHOTS = ROOT / "artefacts/page"
PATIENCE_MS = 60_000
TALLEST_PX = 4000
BASE_SEARCH = re.compile(r"/(batch|review|model|traffic)/_stcore/(health|host-config)$")
"""Streamlit opened at a page's own address looks for its server there first, and Chromium tells of the 404."""


@dataclass(frozen=True)
class Stack:
    api: str
    drift: str
    page: str


def second_version(registry: Registry, sealed: Path, folder: Path, texts: list[str]) -> str:
    """The sealed bundle again, as a candidate that errs where the first is right on its first row, and the other way round."""
    shutil.copytree(sealed, folder)
    table = pq.read_table(folder / REFERENCE)
    true_labels, labels = table["true_label"].to_pylist(), table["label"].to_pylist()
    labels[0] = next(label for label in true_labels if label != true_labels[0])
    table = table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels))
    pq.write_table(table, folder / REFERENCE)
    manifest = msgspec.structs.replace(open_bundle(str(sealed)).manifest, version="20990101-000000-second")
    (folder / MANIFEST).unlink()
    manifest = seal(folder, manifest)
    registry.publish(folder, manifest)
    registry.keep_test_texts(manifest.name, manifest.version, texts)
    registry.set_alias(manifest.name, "candidate", manifest.version, "trained", expected=None)
    registry.note_refusal(manifest.name, "production", manifest.version, "a row was lost", "hold", by="gate")
    return manifest.version


@pytest.fixture(scope="module")
def stack(sealed_bundle: Path, tiny_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    manifest = open_bundle(str(sealed_bundle)).manifest
    source = Registry(str(Path(tiny_run["run"]).parent / "registry"))
    texts = source.test_texts(manifest.name, manifest.version)
    assert texts is not None
    registry = Registry(str(folder / "registry"))
    registry.publish(sealed_bundle, manifest)
    registry.keep_test_texts(manifest.name, manifest.version, texts)
    registry.set_alias(manifest.name, "production", manifest.version, "the first bundle", expected=None)
    second_version(registry, sealed_bundle, folder / "second", texts)
    ports = {name: str(free_port()) for name in ("API_PORT", "DRIFT_PORT", "PAGE_PORT", "PROMETHEUS_PORT")}
    log = (folder / "stderr").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "frontend.up"], cwd=folder, env=environment(**ports), stderr=log)
    try:
        wait_for_line(folder / "stderr", process, "Ctrl-C stops")
        stack = Stack(*(f"http://127.0.0.1:{ports[name]}" for name in ("API_PORT", "DRIFT_PORT", "PAGE_PORT")))
        write_log(stack.api)
        yield stack
    finally:
        process.terminate()
        process.wait(60)
        log.close()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The address of a page that nobody has visited yet, with a login set up."""
    secrets = tmp_path / ".streamlit/secrets.toml"
    secrets.parent.mkdir()
    lines = [
        "[auth]",
        'redirect_uri = "http://127.0.0.1/oauth2callback"',
        'cookie_secret = "0"',
        'client_id = "page"',
        'client_secret = "none"',
        'server_metadata_url = "http://127.0.0.1:9/"',
    ]
    secrets.write_text("\n".join(lines), encoding="utf-8")
    port = str(free_port())
    variables = environment(PORT=port, PIGEONHOLE_PAGE_USERS="ann@example.com")
    process = subprocess.Popen([sys.executable, "-m", "frontend"], cwd=tmp_path, env=variables)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/_stcore/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def wait_for_line(file: Path, process: "subprocess.Popen[bytes]", words: str, seconds: float = 180) -> None:
    for _ in range(int(seconds * 5)):
        if words in file.read_text(encoding="utf-8", errors="replace"):
            return
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"the stack does not start: {file.read_text(encoding='utf-8', errors='replace')[-2000:]}")


def write_log(api: str) -> None:
    """All tiny texts, some that belong nowhere, and what an agent said of a third."""
    rows = [*tiny_rows(), *((f"{word} and {word}?", "billing") for word in ("hmm", "well", "parcel invoice", "my login parcel"))]
    answers = httpx.post(f"{api}/predict", json={"texts": [text for text, _ in rows]}, timeout=60).json()["predictions"]
    for answer, (_, label) in list(zip(answers, rows, strict=True))[::3]:
        body = {"prediction_id": answer["prediction_id"], "label": label, "source": "agent"}
        httpx.post(f"{api}/feedback", json=body, timeout=60).raise_for_status()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ends with this module: while it is open, its event loop is the thread's, and other tests could not run theirs."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@dataclass
class Visitor:
    """A page of the browser, and all that went wrong in it."""

    page: Page
    base: str
    own: tuple[str, ...]
    wrong: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        where = str(message.location.get("url", ""))
        if message.type == "error" and not BASE_SEARCH.search(where):
            self.wrong.append(f"console: {message.text} ({where})")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((*self.own, "data:", "blob:", "about:")):
            self.wrong.append(f"asked {request.url}")

    def open(self, path: str, title: str) -> None:
        self.page.goto(f"{self.base}/{path}")
        self.page.get_by_role("heading", name=title, exact=True, level=1).wait_for()
        self.settle()

    def settle(self) -> None:
        """Until Streamlit runs nothing, nothing is a grey placeholder, and every chart that is to be seen is drawn."""
        self.page.wait_for_timeout(150)
        self.page.wait_for_function(
            "() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
            " && !document.querySelector('[data-testid=stSkeleton]') && !document.querySelector('[data-stale=true]')"
            " && [...document.querySelectorAll('[data-testid=stVegaLiteChart]')]"
            ".every(each => !each.offsetParent || each.querySelector('canvas, svg'))"
        )
        self.page.wait_for_timeout(150)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()
        self.settle()

    def press(self, name: str | re.Pattern[str]) -> None:
        self.page.get_by_role("button", name=name).first.click()
        self.settle()

    def await_words(self, words: str | re.Pattern[str]) -> None:
        """Until they are to be seen: a moment after a click Streamlit runs nothing yet, on a slow machine a long moment."""
        self.page.get_by_text(words).filter(visible=True).first.wait_for()
        self.settle()

    def shoot(self, name: str, shows: str | re.Pattern[str]) -> None:
        """All of the page, also what has to be scrolled to, once what it is to show is there; kept with the run's artefacts."""
        self.await_words(shows)
        SHOTS.mkdir(parents=True, exist_ok=True)
        size = self.page.viewport_size
        assert size is not None
        height = int(self.page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollHeight"))
        self.page.set_viewport_size({"width": size["width"], "height": min(max(height, size["height"]), TALLEST_PX)})
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=SHOTS / f"{name}.png")
        self.page.set_viewport_size(size)

    def barriers(self) -> list[str]:
        """What axe finds serious or critical on the page; on a busy machine it may meet what fades away, so it looks twice."""
        found = self._barriers()
        if found:
            self.settle()
            found = self._barriers()
        return found

    def _barriers(self) -> list[str]:
        if not self.page.evaluate("() => 'axe' in window"):
            self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
        return [
            f"{each['impact']} {each['id']}: {node['html'][:200]} {node['failureSummary'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]


@pytest.fixture
def visit(browser: Browser, stack: Stack) -> Iterator[Callable[..., Visitor]]:
    """Opens the browser as somebody new; at the end nothing may have been said on the console or asked elsewhere."""
    visitors: list[Visitor] = []

    def start(width: int = 1280, height: int = 900, scheme: str = "light") -> Visitor:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True)  # type: ignore[arg-type]
        visitor = Visitor(context.new_page(), stack.page, (stack.page, stack.page.replace("http", "ws")))
        visitor.watch()
        visitors.append(visitor)
        return visitor

    yield start
    wrong = [each for visitor in visitors for each in visitor.wrong]
    for visitor in visitors:
        visitor.page.context.close()
    assert wrong == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everywhere but on Linux a person has a browser of their own; on Linux .ci/tools installs what is missing."""
    why = "needs Linux" if sys.platform != "linux" else "needs chromium and axe-core, which .ci/tools installs"
    if sys.platform == "linux" and CHROMIUM and AXE.exists():
        return
    here = os.fspath(Path(__file__).parent)
    for item in items:
        if os.fspath(item.path).startswith(here):
            item.add_marker(pytest.mark.skip(reason=why))
