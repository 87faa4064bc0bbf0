"""Does a file of 100,000 rows freeze the page? A real Chromium uploads it to the page, before the real server.

    uv run python -m benchmarks.frontend.rows bundle=FOLDER [rows=100000] [texts=FILE.csv column=text]

The texts are those of a column, again and again, or without a file four short sentences with a number. The file is begun,
cancelled and begun again. While it runs, the page is asked every second: how long its main thread has stood still at most (gaps
between animation frames), and how long a click needs until its effect is seen. Then a filter over all rows, and the download.
Linux tells what memory the page's process took at most. Prints one JSON object.
"""

import csv
import io
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.scoring.same_answers import column_of
from frontend.up import Part, parts, running, wait_until_ready
from playwright.sync_api import Page, sync_playwright
from tests.e2e.conftest import CHROMIUM, QUIET
from tests.frontend.conftest import environment

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.options import read_options, setting
from pigeonhole.port import free_port

WATCH_FRAMES = """() => {
  window.worst = 0; let before = performance.now();
  const frame = now => { window.worst = Math.max(window.worst, now - before); before = now; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
}"""
TAKE_WORST = "() => { const worst = window.worst; window.worst = 0; return worst; }"
SENTENCES = (
    "where is my parcel {}",
    "I was charged twice for order {}",
    "I cannot login since update {}",
    "please cancel {} at once",
)


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the folder of a bundle")
    rows: int = setting(100_000, "of the file", ge=1)
    texts: str | None = setting(None, "a CSV file, whose texts are taken again and again")
    column: str = setting("text", "of the file")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=FOLDER is needed; see --help")
    if not CHROMIUM:
        raise ConfigError("no Chromium is here; as root on Debian, .ci/tools installs it")
    texts = texts_of(options.texts, options.column, options.rows)
    with stack(Path(options.bundle)) as (url, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.set_default_timeout(600_000)
        empty_mb = peak_mb(process)
        found = measure(page, url, texts)
        found["page_peak_mb"] = {"before": empty_mb, "after": peak_mb(process)}
        browser.close()
    return found


def texts_of(file: str | None, column: str, rows: int) -> list[str]:
    if file is None:
        return [SENTENCES[number % 4].format(number) for number in range(rows)]
    return list(itertools.islice(itertools.cycle(column_of(file, column)), rows))


def as_csv(texts: list[str]) -> bytes:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("text",), *((text,) for text in texts)])
    return table.getvalue().encode()


def peak_mb(process: int) -> int:
    """The largest resident memory so far."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1000


@contextmanager
def stack(bundle: Path) -> Iterator[tuple[str, int]]:
    """The page's address and its process."""
    with TemporaryDirectory() as folder, ExitStack() as opened:
        ports = {name: str(free_port()) for name in ("API_PORT", "DRIFT_PORT", "PAGE_PORT", "PROMETHEUS_PORT")}
        variables = environment(PIGEONHOLE_BUNDLE=str(bundle.resolve()), PIGEONHOLE_LOG=f"{folder}/log", **ports)
        wanted: list[Part] = [part for part in parts(variables, Path(folder)) if part.name in ("service", "page")]
        started = opened.enter_context(running(wanted))
        for part in wanted:
            if not wait_until_ready(part, started[part.name]):
                raise RunError(f"{part.name} does not start; what it said stands above")
        yield wanted[1].url, started["page"].pid


def measure(page: Page, url: str, texts: list[str]) -> dict[str, Any]:
    rows = len(texts)
    page.goto(f"{url}/batch")
    began = time.perf_counter()
    page.locator("input[type=file]").set_input_files({"name": "rows.csv", "mimeType": "text/csv", "buffer": as_csv(texts)})
    page.get_by_role("button", name=f"Classify {rows:,} texts").click()
    page.get_by_role("button", name="Cancel").wait_for()
    read_s = time.perf_counter() - began
    cancelled_s = cancel(page)
    page.get_by_role("button", name="Classify again").click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.evaluate(WATCH_FRAMES)
    stalls, clicks = [], []
    began = time.perf_counter()
    while not page.get_by_text(f"{rows:,} texts in").is_visible():
        clicks.append(click(page))
        page.wait_for_timeout(1000)
        stalls.append(page.evaluate(TAKE_WORST))
        say(f"{time.perf_counter() - began:.0f} s: longest stall {stalls[-1]:.0f} ms, click {clicks[-1]:.0f} ms")
    classified_s = time.perf_counter() - began
    began = time.perf_counter()
    page.get_by_label("Text contains").fill(texts[-1][:20])
    page.keyboard.press("Enter")
    page.get_by_text("rows", exact=False).first.wait_for()
    wait_until_drawn(page)
    filter_s = time.perf_counter() - began
    began = time.perf_counter()
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Download {rows:,} rows").click()
    with download.value.path().open(encoding="utf-8-sig", newline="") as stream:
        lines = sum(1 for _ in csv.reader(stream)) - 1
    if lines != rows:
        raise RunError(f"the download has {lines:,} rows, and not {rows:,}")
    return {
        "rows": rows,
        "read_s": round(read_s, 1),
        "cancelled_s": round(cancelled_s, 2),
        "classified_s": round(classified_s, 1),
        "filter_s": round(filter_s, 2),
        "download_s": round(time.perf_counter() - began, 2),
        "stall_ms": {"median": round(statistics.median(stalls)), "most": round(max(stalls))},
        "click_ms": {"median": round(statistics.median(clicks)), "most": round(max(clicks))},
    }


def cancel(page: Page) -> float:
    """Seconds from the click to the page that says so, with the results so far."""
    page.wait_for_timeout(2000)
    began = time.perf_counter()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled after").wait_for()
    wait_until_drawn(page)
    return time.perf_counter() - began


def wait_until_drawn(page: Page) -> None:
    page.wait_for_timeout(100)
    page.wait_for_function("() => document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'")


def click(page: Page) -> float:
    """Milliseconds until the menu has opened; it is closed again."""
    began = time.perf_counter()
    page.get_by_test_id("stMainMenu").click()
    page.get_by_role("menu").or_(page.get_by_test_id("stMainMenuPopover")).first.wait_for()
    waited = (time.perf_counter() - began) * 1000
    page.keyboard.press("Escape")
    return waited


if __name__ == "__main__":
    command(run)()
