"""A visit to the page, as its visitors make it: a real Chromium before the real server, the real drift service and a real log."""

import re
import time
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Browser, expect
from tests.e2e.conftest import Stack, Visitor

Visit = Callable[..., Visitor]

ASKED = "?text=where+is+my+parcel"
PAGES = {ASKED: "Classify", "batch": "Batch", "review": "Review", "model": "Model", "traffic": "Traffic and drift"}
TABS = {"model": ("Quality", "Errors", "Versions", "Compare", "Card"), "traffic": ("Now", "Over time", "Drift")}
SHOWN: dict[str, str | re.Pattern[str]] = {
    "Classify": "Calibrated: of answers",
    "Batch": "Up to 100,000 texts",
    "Review": re.compile(r"^\d+ in hand"),
    "Model Quality": "Does the answer hang on trifles?",
    "Model Errors": re.compile("with a wrong label, the surest first|No text has a wrong label"),
    "Model Versions": "What was decided",
    "Model Compare": "Label by label",
    "Model Card": "What answers now",
    "Traffic and drift Now": "Prediction log:",
    "Traffic and drift Over time": "How often it was right, by what people said",
    "Traffic and drift Drift": "Compare now",
}
"""What stands at the end of each page and tab, or all that it has to say: the last that comes."""


def test_the_first_visitor_of_all_is_asked_to_log_in_also_at_a_pages_own_address(browser: Browser, guarded: str) -> None:
    """Streamlit would run a folder named pages/ without app.py until somebody has opened app.py."""
    page = browser.new_page()
    page.goto(f"{guarded}/model")
    page.get_by_role("button", name="Log in").wait_for()
    assert page.get_by_role("heading", name="Model").count() == 0
    page.close()


def test_a_text_is_classified_explained_corrected_and_linked_to(visit: Visit, stack: Stack) -> None:
    visitor = visit()
    page = visitor.page
    visitor.open("", "Classify")
    page.get_by_label("Text").fill("my parcel <b>bold</b> ![](http://evil.example/a.png) أين الطرد")
    visitor.press(re.compile("Classify$"))
    page.get_by_text("Calibrated: of answers").wait_for()
    assert page.locator("b", has_text="bold").count() == 0
    visitor.press("Which words decided?")
    page.get_by_text(re.compile("speak for")).wait_for()
    visitor.shoot("classify-desktop", "speak for")
    assert visitor.barriers() == []
    visitor.press("Link to this question")
    link = page.get_by_test_id("stCode").inner_text()
    page.keyboard.press("Escape")
    visitor.press("Wrong? Tell us")
    page.get_by_label("The right label").click()
    page.get_by_role("option", name="account").click()
    visitor.press("Send")
    page.get_by_text("Noted: account").wait_for()
    other = visit()
    other.page.goto(link)
    other.page.get_by_text("Calibrated: of answers").wait_for()
    # The field may get its text a moment after the answer below it.
    expect(other.page.get_by_label("Text")).to_have_value(re.compile(re.escape("my parcel <b>bold</b>")))


def test_a_file_is_classified_looked_through_and_taken_home(visit: Visit) -> None:
    visitor = visit()
    page = visitor.page
    visitor.open("batch", "Batch")
    rows = "".join(f"{number},where is my parcel {number}\n" for number in range(400))
    content = f"id,message\n{rows}400,=1+1 my password\n".encode()
    page.locator("input[type=file]").set_input_files({"name": "mail.csv", "mimeType": "text/csv", "buffer": content})
    visitor.press(re.compile("Classify 401 texts"))
    page.get_by_text(re.compile("401 texts in")).wait_for()
    page.get_by_label("Text contains").fill("password")
    page.keyboard.press("Enter")
    page.get_by_text("1 row", exact=True).wait_for()
    visitor.shoot("batch-desktop", "1 row")
    assert visitor.barriers() == []
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("Download 401 rows")).click()
    lines = download.value.path().read_text(encoding="utf-8-sig").splitlines()
    assert len(lines) == 402
    assert lines[-1].startswith("400,'=1+1 my password,")


def test_a_closed_tab_takes_its_batch_along(visit: Visit, stack: Stack) -> None:
    visitor = visit()
    page = visitor.page
    visitor.open("batch", "Batch")
    content = b"text\n" + b"".join(b"where is my parcel %d\n" % number for number in range(100_000))
    page.locator("input[type=file]").set_input_files({"name": "mail.csv", "mimeType": "text/csv", "buffer": content})
    visitor.settle()
    page.get_by_role("button", name=re.compile("Classify 100,000 texts")).click()
    page.get_by_text(re.compile(r"^[1-9][\d,]* of 100,000 texts")).wait_for()
    page.context.close()
    before, after = -1.0, answered(stack.api)
    while before != after:  # what was under way comes to its end
        time.sleep(2)
        before, after = after, answered(stack.api)
    assert after < 90_000


def answered(api: str) -> float:
    found = re.search(r"^pigeonhole_batch_texts_sum (\S+)", httpx.get(f"{api}/metrics", timeout=60).text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_texts_are_reviewed_with_one_key_each_and_the_drift_service_counts_them(visit: Visit, stack: Stack) -> None:
    visitor = visit()
    page = visitor.page
    visitor.open("review", "Review")
    before = httpx.get(f"{stack.drift}/review?n=1", timeout=60).json()["waiting"]
    assert before >= 2
    page.keyboard.press("1")
    page.get_by_text("Judged in this visit").wait_for()
    visitor.settle()
    page.keyboard.press("2")
    page.get_by_text("50.0 %").wait_for()
    visitor.settle()
    left = int(page.get_by_text(re.compile(r"^\d+ in hand")).inner_text().split()[0])
    page.keyboard.press("s")
    visitor.shoot("review-desktop", re.compile(rf"^{left - 1} in hand") if left > 1 else "Nothing is waiting")
    assert visitor.barriers() == []
    assert httpx.get(f"{stack.drift}/review?n=1", timeout=60).json()["waiting"] == before - 2
    with page.expect_download() as download:
        page.get_by_test_id("stDownloadButton").filter(has_text="Download as CSV").click()
    assert download.value.path().read_text(encoding="utf-8-sig").splitlines()[0] == "text,label,model said,prediction_id"


def test_the_model_shows_its_errors_and_what_another_version_would_change(visit: Visit) -> None:
    visitor = visit()
    page = visitor.page
    visitor.open("model", "Model")
    page.get_by_text("Can its confidence be believed?").wait_for()
    page.get_by_text("Does the answer hang on trifles?").wait_for()
    visitor.tab("Errors")
    page.get_by_text("got another label than their own").wait_for()
    page.get_by_role("combobox", name="True label").click()
    page.get_by_role("option", name="billing").click()
    visitor.shoot("model-errors-desktop", "10 texts, the wrong ones first.")
    visitor.tab("Versions")
    visitor.shoot("model-versions-desktop", SHOWN["Model Versions"])
    visitor.tab("Compare")
    page.get_by_role("heading", name="Was right, now wrong: 1").wait_for()
    visitor.shoot("model-compare-desktop", SHOWN["Model Compare"])


def test_drift_is_looked_for_and_evidentlys_report_is_shown_in_its_cage(visit: Visit, stack: Stack) -> None:
    visitor = visit()
    page = visitor.page
    visitor.open("traffic", "Traffic and drift")
    page.get_by_text("Time to an answer").first.wait_for()
    visitor.tab("Over time")
    page.get_by_text("as the prediction log has them").wait_for()
    visitor.shoot("traffic-over-time-desktop", SHOWN["Traffic and drift Over time"])
    visitor.tab("Drift")
    page.get_by_role("button", name="Compare now").click()
    page.get_by_role("heading", name=re.compile("Latest comparison")).wait_for(timeout=240_000)
    visitor.settle()
    page.get_by_text("Show Evidently's report").click()
    caged = page.frame_locator("iframe[title='st.iframe'], iframe").first.frame_locator("iframe[title='drift report']")
    caged.get_by_text(re.compile("Drift", re.IGNORECASE)).first.wait_for()
    visitor.shoot("traffic-drift-desktop", "Latest comparison")
    assert httpx.get(f"{stack.drift}/stats", timeout=60).json()["reports"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_barrier(visit: Visit, scheme: str) -> None:
    visitor = visit(scheme=scheme)
    barriers = {}
    for path, title in PAGES.items():
        visitor.open(path, title)
        for tab in TABS.get(path, ("",)):
            if tab:
                visitor.tab(tab)
            place = f"{title} {tab}".rstrip()
            visitor.await_words(SHOWN[place])
            if scheme == "dark":
                visitor.shoot(f"{place} dark".replace(" ", "-").lower(), SHOWN[place])
            barriers[place] = visitor.barriers()
    assert {place: found for place, found in barriers.items() if found} == {}


def test_every_page_fits_a_phone(visit: Visit) -> None:
    visitor = visit(width=390, height=844)
    for path, title in PAGES.items():
        visitor.open(path, title)
        for tab in TABS.get(path, ("",)):
            if tab:
                visitor.tab(tab)
            place = f"{title} {tab}".rstrip()
            visitor.shoot(f"{place} phone".replace(" ", "-").lower(), SHOWN[place])
            assert visitor.page.evaluate("() => document.documentElement.scrollWidth") <= 390
