import io
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from frontend.view import joined, labels_of
from streamlit.testing.v1 import AppTest
from tests.conftest import tiny_rows
from tests.frontend.conftest import NOBODY, both_services, environment, wait_until_ready
from tests.keyword_bundle import QUEUES, keyword_bundle

from pigeonhole.port import free_port
from pigeonhole.registry import Registry

OpenPage = Callable[..., AppTest]


def words_of(app: AppTest) -> str:
    """All that stands on the page as text."""
    kinds = (app.title, app.subheader, app.markdown, app.caption, app.error, app.warning, app.info, app.success)
    return "\n".join(str(each.value) for kind in kinds for each in kind)


def classify(app: AppTest, text: str) -> AppTest:
    app.text_area(key="text").set_value(text)
    next(button for button in app.button if button.label == "Classify").click()
    return app.run()


@pytest.mark.parametrize("page", ["", "batch", "review", "model"])
def test_a_page_without_the_service_says_so_and_offers_to_try_again(open_page: OpenPage, page: str) -> None:
    app = open_page(NOBODY, page)
    assert not app.exception
    assert "not reachable" in app.error[0].value
    assert [button.label for button in app.button] == ["Try again"]


def test_a_text_gets_its_label_its_decision_in_words_and_its_place_in_the_history(open_page: OpenPage, served: str) -> None:
    app = classify(open_page(served), "is the parcel still the old one")
    assert not app.exception
    assert app.subheader[0].value == "delivery"
    assert "Calibrated" in words_of(app)
    assert app.expander[0].label == "This visit: 1 asked"
    again = classify(app, "I cannot login with my password")
    assert again.subheader[0].value == "account"
    assert again.expander[0].label == "This visit: 2 asked"


def test_a_link_with_a_text_asks_it_at_once(open_page: OpenPage, served: str) -> None:
    app = open_page(served, query={"text": "my invoice & card statement"})
    assert app.text_area(key="text").value == "my invoice & card statement"
    assert app.subheader[0].value == "billing"
    assert "text=my+invoice+%26+card+statement" in app.code[0].value


def test_an_example_fills_the_box(open_page: OpenPage, served: str) -> None:
    app = open_page(served)
    app.button(key="example-0").click().run()
    assert app.text_area(key="text").value == "Where is my parcel?"


def test_of_150_labels_the_ten_likeliest_are_drawn(
    open_page: OpenPage, serve_bundle: Callable[[Path], str], tmp_path: Path
) -> None:
    words = {f"word{number}": f"label number {number}" for number in range(150)}
    url = serve_bundle(Path(keyword_bundle(tmp_path / "many", "1", words).url))
    app = classify(open_page(url), "word77")
    assert not app.exception
    assert app.subheader[0].value == "label number 77"
    assert "The 10 likeliest of 150 labels." in words_of(app)
    model = open_page(url, "model")
    assert not model.exception
    assert "no metrics" in model.info[0].value


def test_no_text_asks_for_one(open_page: OpenPage, served: str) -> None:
    assert "no text yet" in classify(open_page(served), "   ").warning[0].value


def test_right_to_left_text_is_answered_and_kept_as_it_is(open_page: OpenPage, served: str) -> None:
    text = "أين الطرد الخاص بي؟ (parcel)"
    app = classify(open_page(served), text)
    assert not app.exception
    assert app.dataframe[0].value["text"][0] == text


def test_a_text_with_markup_is_shown_as_text(open_page: OpenPage, served: str) -> None:
    app = classify(open_page(served), "<script>alert(1)</script> **parcel** [a](http://b)")
    assert not app.exception
    assert "<script>" not in words_of(app)


def test_a_wrong_answer_is_told_to_the_service_once(open_page: OpenPage, served: str) -> None:
    app = classify(open_page(served), "parcel")
    next(box for box in app.selectbox if box.label == "The right label").select("billing").run()
    next(button for button in app.button if button.label == "Send").click().run()
    assert not app.exception
    assert "Noted: billing" in app.success[0].value
    assert not [box for box in app.selectbox if box.label == "The right label"]


def test_the_words_that_decided_are_marked_and_the_others_are_not(open_page: OpenPage, served: str) -> None:
    app = classify(open_page(served), "where is my parcel and the *courier*")
    next(button for button in app.button if button.label == "Which words decided?").click().run()
    assert not app.exception
    assert "-background[" in words_of(app)
    assert "speak for delivery" in words_of(app)


def test_a_text_that_begins_with_spaces_is_no_block_of_code_among_its_marked_words(open_page: OpenPage, keywords: str) -> None:
    app = classify(open_page(keywords), "where is it\n\n    my parcel\n\n\tand the courier")
    next(button for button in app.button if button.label == "Which words decided?").click().run()
    marked = next(found.value for found in app.markdown if "-background[" in found.value)
    lines = [line for line in marked.split("\n") if line.strip()]
    assert [line[:5] for line in lines] == ["where", "\u00a0\u00a0\u00a0\u00a0m", "\u00a0\u00a0\u00a0\u00a0a"]


def upload(app: AppTest, name: str, data: bytes) -> AppTest:
    app.file_uploader[0].set_value((name, data, "application/octet-stream"))
    return app.run()


def run_batch(app: AppTest) -> AppTest:
    next(button for button in app.button if button.label.startswith("Classify")).click()
    app.run()
    deadline = time.monotonic() + 60
    while not app.session_state.job.finished and time.monotonic() < deadline:
        time.sleep(0.05)
    return app.run()


@pytest.fixture
def rows() -> pd.DataFrame:
    texts = [f"parcel number {number}" for number in range(598)] + ["", "=1+1 my password"]
    return pd.DataFrame({"id": [f"{number:03}" for number in range(600)], "message": texts})


def test_a_file_is_classified_to_the_last_row_and_comes_back_safe_for_spreadsheets(
    open_page: OpenPage, served: str, rows: pd.DataFrame
) -> None:
    app = run_batch(upload(open_page(served, "batch"), "mail.csv", rows.to_csv(index=False).encode()))
    assert not app.exception
    assert "600 texts" in app.success[0].value
    data = app.session_state.download
    back = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    assert list(back.columns) == ["id", "message", "predicted_label", "predicted_score", "predicted_decision", "predicted_note"]
    assert len(back) == 600
    assert back["id"][7] == "007"
    assert back.loc[598, "predicted_note"] == "blank"
    assert back.loc[599, "message"] == "'=1+1 my password"
    assert set(back["predicted_label"][:598]) <= {"delivery", "account", "billing"}


def test_a_file_of_one_blank_text_names_no_version_that_was_never_asked(open_page: OpenPage, keywords: str) -> None:
    app = upload(open_page(keywords, "batch"), "mail.csv", b'text\n" "\n')
    assert "Classify 1 text" in [button.label for button in app.button]
    app = run_batch(app)
    assert re.fullmatch(r"1 text in [\d.]+ s", app.success[0].value)
    assert app.metric[0].label == "Passed over (blank)"
    assert not app.exception


def test_half_a_character_in_a_file_is_shown_classified_and_taken_home_as_the_sign_for_one(
    open_page: OpenPage, keywords: str
) -> None:
    """JSON may hold it, where a program has cut a text in the middle of an emoji; no browser takes it."""
    app = upload(open_page(keywords, "batch"), "mail.jsonl", b'{"text": "my parcel \\ud83d", "a\\ud83d": "\\ud83d\\ude00"}\n')
    assert not app.exception
    app = run_batch(app)
    assert not app.exception
    back = pd.read_csv(io.BytesIO(app.session_state.download), dtype=str)
    assert back.iloc[0, :3].tolist() == ["my parcel \ufffd", "\U0001f600", "delivery"]
    assert back.columns[1] == "a\ufffd"


@pytest.fixture
def keywords(serve_bundle: Callable[[Path], str], tmp_path: Path) -> str:
    return serve_bundle(Path(keyword_bundle(tmp_path / "keywords", "1", QUEUES).url))


def test_what_was_taken_home_is_classified_again_and_keeps_its_columns(open_page: OpenPage, keywords: str) -> None:
    file = b"text,predicted_label,predicted_score\nmy parcel,billing,0.5\n"
    app = run_batch(upload(open_page(keywords, "batch"), "classified.csv", file))
    assert not app.exception
    back = pd.read_csv(io.BytesIO(app.session_state.download), dtype=str)
    assert back.loc[0, ["predicted_label", "predicted_label_2"]].tolist() == ["billing", "delivery"]


def test_a_file_is_still_there_after_a_look_at_another_page(open_page: OpenPage, keywords: str) -> None:
    app = upload(open_page(keywords, "batch"), "mail.csv", b"text,message\na longer one,my parcel\nanother one,my login\n")
    app.selectbox(key="column").select("message").run()
    app = run_batch(app)
    app.switch_page("screens/model.py").run()
    app.switch_page("screens/batch.py").run()
    assert not app.exception
    assert "2 texts" in app.success[0].value
    assert app.selectbox(key="column").value == "message"
    assert any("mail" in caption.value for caption in app.caption)
    again = upload(app, "other.csv", b"id,body\n1,my parcel\n")
    assert not again.exception
    assert not again.success
    assert again.selectbox(key="column").value == "body"


def test_results_are_filtered_by_what_a_text_contains(open_page: OpenPage, served: str, rows: pd.DataFrame) -> None:
    app = run_batch(upload(open_page(served, "batch"), "mail.csv", rows.to_csv(index=False).encode()))
    app.text_input[0].set_value("NUMBER 59").run()
    assert app.dataframe[-1].value["text"].tolist()[:2] == ["parcel number 59", "parcel number 590"]
    assert any(caption.value == "9 rows" for caption in app.caption)


def test_a_file_that_is_no_table_is_refused_in_one_sentence(open_page: OpenPage, served: str) -> None:
    app = upload(open_page(served, "batch"), "mail.csv", b"a,b\n1,2,3\n")
    assert "row 1 has 3 cells" in app.error[0].value
    assert not app.exception


def test_the_model_page_tells_quality_beside_the_baselines(open_page: OpenPage, served: str) -> None:
    app = open_page(served, "model")
    assert not app.exception
    assert [metric.label for metric in app.metric] == ["Accuracy", "Macro-F1", "Calibration error"]
    beside = app.dataframe[0].value
    assert {"this model", "always the commonest label", "TF-IDF, logistic regression"} <= set(beside["model"])
    assert sorted(app.dataframe[1].value["label"]) == ["account", "billing", "delivery"]


def test_an_empty_log_and_no_drift_service_are_told_in_words(
    open_page: OpenPage, sealed_bundle: Path, serve_bundle: Callable[[Path], str]
) -> None:
    app = open_page(serve_bundle(sealed_bundle), "traffic")
    assert not app.exception
    assert any("No text has been classified yet" in info.value for info in app.info)
    assert any("drift service is not reachable" in info.value for info in app.info)


def test_traffic_counts_what_was_asked(open_page: OpenPage, served: str) -> None:
    classify(open_page(served), "parcel")
    app = open_page(served, "traffic")
    assert not app.exception
    figures: dict[str, Any] = {metric.label: metric.value for metric in app.metric}
    assert int(figures["Texts classified"].replace(",", "")) >= 1
    assert figures["Median"].endswith("ms")


def test_traffic_without_the_service_says_so(open_page: OpenPage) -> None:
    app = open_page(NOBODY, "traffic")
    assert "not reachable" in app.error[0].value
    assert not app.exception


def test_a_drawing_that_is_gone_is_told_in_words(open_page: OpenPage, tmp_path: Path) -> None:
    held_out = [(f"{word} {number}", label) for word, label in QUEUES.items() for number in range(5)]
    bundle = keyword_bundle(tmp_path / "bundle", "v1", held_out=held_out)
    registry = Registry(str(tmp_path / "registry"))
    registry.publish(bundle.folder, bundle.manifest)
    registry.set_alias("keywords", "production", "v1", "first", expected=None)
    with both_services(registry.url, tmp_path) as (api, drift):
        httpx.post(f"{api}/predict", json={"texts": ["parcel"] * 30}, timeout=60).raise_for_status()
        httpx.post(f"{drift}/runs", timeout=60).raise_for_status()
        report = tmp_path / "reports/000001.json"
        report.write_text(report.read_text(encoding="utf-8").replace("not asked for", "drawn"), encoding="utf-8")
        app = open_page(api, "traffic", drift=drift)
        app.toggle[1].set_value(True).run()
        assert not app.exception
        assert "there is no such report" in app.info[-1].value


@pytest.fixture(scope="session")
def watched(tiny_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`serve` and `drift` over the tiny registry and one log of twenty answers: their URLs."""
    registry = str(Path(tiny_run["run"]).parent / "registry")
    with both_services(registry, tmp_path_factory.mktemp("watched")) as (api, drift):
        texts = [f"parcel or invoice {number}?" for number in range(20)]
        version = httpx.post(f"{api}/predict", json={"texts": texts}, timeout=60).json()["model_version"]
        httpx.get(f"{drift}/versions/{version}", timeout=60).raise_for_status()  # read once, it is kept
        yield api, drift


def test_examples_are_texts_of_the_test_split(open_page: OpenPage, watched: tuple[str, str]) -> None:
    api, drift = watched
    app = open_page(api, drift=drift)
    app.button(key="example-0").click().run()
    assert app.text_area(key="text").value in dict(tiny_rows())


def test_a_reviewed_text_is_told_to_the_service_and_the_next_one_comes(open_page: OpenPage, watched: tuple[str, str]) -> None:
    api, drift = watched
    app = open_page(api, "review", drift=drift)
    assert not app.exception
    first = app.text[0].value
    next(button for button in app.button if str(button.key).endswith("-1")).click().run()
    assert not app.exception
    assert app.text[0].value != first
    assert {metric.label: metric.value for metric in app.metric} == {
        "Judged in this visit": "1",
        "You agree with the model": "100.0 %",
    }
    assert app.dataframe[0].value["text"].tolist() == [first]
    assert first not in {item["text"] for item in httpx.get(f"{drift}/review?n=200", timeout=60).json()["items"]}


def test_without_the_drift_service_there_is_no_queue(open_page: OpenPage, served: str) -> None:
    app = open_page(served, "review")
    assert not app.exception
    assert "there is no queue" in app.info[0].value


def test_the_model_page_shows_errors_versions_and_what_was_decided(open_page: OpenPage, watched: tuple[str, str]) -> None:
    api, drift = watched
    app = open_page(api, "model", drift=drift)
    assert not app.exception
    assert {"Part by part", "Does the answer hang on trifles?", "What was decided"} <= {each.value for each in app.subheader}
    app.selectbox(key="drill-true").select("billing").run()
    assert any(caption.value.startswith("10 texts, the wrong ones first.") for caption in app.caption)
    app.selectbox(key="drill-label").select("account").run()
    assert "There is no such text." in [caption.value for caption in app.caption]
    assert any(each.value.replace("\\", "").startswith("**production: set** ") for each in app.markdown)
    assert not app.exception


def test_the_log_over_time_and_a_run_are_shown(open_page: OpenPage, watched: tuple[str, str]) -> None:
    api, drift = watched
    (item,) = httpx.get(f"{drift}/review?n=1", timeout=60).json()["items"]
    said = {"prediction_id": item["prediction_id"], "source": item["source"], "label": item["label"]}
    httpx.post(f"{api}/feedback", json=said, timeout=60).raise_for_status()
    app = open_page(api, "traffic", drift=drift)
    assert not app.exception
    assert any("as the prediction log has them" in caption.value for caption in app.caption)
    next(button for button in app.button if button.label == "Compare now").click().run()
    assert not app.exception
    assert any(each.value == "Latest comparison: too few rows" for each in app.subheader)
    assert any("too few texts to compare" in each.value for each in app.info)
    assert {metric.label: metric.value for metric in app.metric}["Measured by review"] == "too few yet"


def test_what_was_refused_is_a_share_over_time_also_without_the_drift_service(
    open_page: OpenPage, serve_bundle: Callable[[Path], str], sealed_bundle: Path
) -> None:
    api = serve_bundle(sealed_bundle)
    empty = open_page(api, "traffic")
    assert "Nobody has asked anything since" in words_of(empty)
    for text in ("my parcel", "my invoice", "my login", " "):
        httpx.post(f"{api}/predict", json={"text": text}, timeout=60)
    app = open_page(api, "traffic")
    assert not app.exception
    shown = {metric.label: metric.value for metric in app.tabs[1].metric}
    assert shown == {"Questions": "4", "Failed": "0.0 %", "Turned away": "0.0 %", "Refused": "25.0 %"}
    assert "it remembers a week" in words_of(app)


def test_an_empty_log_has_no_queue_and_nothing_over_time(
    open_page: OpenPage, served: str, sealed_bundle: Path, tmp_path: Path
) -> None:
    port = str(free_port())
    settings = environment(PORT=port, PIGEONHOLE_BUNDLE=str(sealed_bundle), PIGEONHOLE_LOG=str(tmp_path / "log"))
    process = subprocess.Popen([shutil.which("drift") or "drift"], env=settings, cwd=tmp_path)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/health", process)
        review = open_page(served, "review", drift=f"http://127.0.0.1:{port}")
        assert "Nothing is waiting" in review.success[0].value
        traffic = open_page(served, "traffic", drift=f"http://127.0.0.1:{port}")
        assert any("no text of this span" in info.value for info in traffic.info)
        assert any("no report yet" in info.value for info in traffic.info)
        assert not review.exception
        assert not traffic.exception
    finally:
        process.terminate()
        process.wait(20)


def test_several_labels_of_one_answer_are_all_shown() -> None:
    assert labels_of({"label": "a", "labels": ["a", "b"]}) == ["a", "b"]
    assert (labels_of({"label": "a"}), joined(labels_of({"label": "a", "labels": []}))) == (["a"], "none of the labels")
