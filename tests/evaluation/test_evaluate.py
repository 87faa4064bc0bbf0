import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tests.evaluation.test_labelled import origin
from tests.keyword_bundle import QUEUES, keyword_bundle, keyword_rows

from pigeonhole.command import call
from pigeonhole.errors import BundleError, ConfigError, DataError
from pigeonhole.evaluation.evaluate import run


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.csv", keyword_rows())


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return keyword_bundle(tmp_path / "bundle", "v1").url


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def evaluate(bundle: str, *arguments: str) -> dict[str, Any]:
    return run([f"bundle={bundle}", *arguments])


def test_a_bundle_that_knows_every_word_is_right_on_every_row(bundle: str, rows_file: Path) -> None:
    found = evaluate(bundle, f"data.path={rows_file}")
    assert (found["bundle"], found["model"], found["version"], found["precision"]) == (
        f"file://{bundle}",
        "keywords",
        "v1",
        "fp32",
    )
    assert (found["test"]["n"], found["test"]["accuracy"], found["test"]["macro_f1"]) == (144, 1, 1)
    assert found["baselines"]["majority"]["accuracy"] < 0.5
    assert found["warnings"] == []
    assert set(found["seconds"]) == {"load", "baselines", "score", "total"}


def test_scores_are_those_of_scikit_learn_on_a_bundle_that_errs(tmp_path: Path, rows_file: Path) -> None:
    mistaken = {**QUEUES, "charge": "delivery", "login": "billing"}
    found = evaluate(keyword_bundle(tmp_path / "bundle", "v1", mistaken).url, f"data.path={rows_file}")
    given = [next(mistaken[word] for word in mistaken if word in text) for text, _ in keyword_rows()]
    expected = f1_score([label for _, label in keyword_rows()], given, average="macro")
    assert found["test"]["macro_f1"] == pytest.approx(expected)


def test_baselines_are_cross_fitted_on_the_file_where_there_are_no_training_rows(bundle: str, rows_file: Path) -> None:
    found = evaluate(bundle, f"data.path={rows_file}")["baselines"]
    assert found["fitted_on"] == "cross-fit 5 folds of this file"
    assert found["tfidf"]["accuracy"] > 0.9


def test_baselines_are_fitted_on_training_rows_that_are_given(bundle: str, rows_file: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", [("nothing to learn here", "billing"), ("nor here", "delivery")])
    found = evaluate(bundle, f"data.path={rows_file}", f"train.path={train}")["baselines"]
    assert found["fitted_on"] == str(train)
    assert found["tfidf"]["accuracy"] < 0.5


def test_without_a_file_the_bundle_is_measured_on_the_rows_that_it_kept_for_its_test(rows_file: Path, tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1", provenance=origin(rows_file)).url
    found = evaluate(bundle)
    assert found["data"] == f"test split of {rows_file}, seed 0"
    assert found["baselines"]["fitted_on"] == f"training split of {rows_file}, seed 0"
    assert found["test"]["n"] == 29


def test_the_test_split_of_a_training_run_gets_the_scores_that_the_run_printed(tiny_run: dict[str, Any]) -> None:
    found = evaluate(tiny_run["bundle"], "threads=1")
    assert found["test"]["n"] == tiny_run["test"]["n"]
    assert found["test"]["accuracy"] == tiny_run["test"]["accuracy"]
    assert found["test"]["ece"] == pytest.approx(tiny_run["test"]["ece"], abs=1e-6)
    assert found["baselines"]["tfidf"]["macro_f1"] == tiny_run["baselines"]["tfidf"]["macro_f1"]


def test_rows_that_the_bundle_was_trained_on_are_counted_in_a_warning(rows_file: Path, tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1", provenance=origin(rows_file)).url
    some = write(tmp_path / "some.csv", [(f"  {text.upper()}!", label) for text, label in keyword_rows()])
    assert evaluate(bundle, f"data.path={some}")["warnings"][0].startswith("115 of the 144 rows have a text that the bundle was")
    new = write(tmp_path / "new.csv", [(f"{text} once more", label) for text, label in keyword_rows()])
    assert evaluate(bundle, f"data.path={new}")["warnings"] == []
    assert evaluate(bundle)["warnings"] == []
    rows_file.write_text("text,label\nquite another,billing\n")
    assert "cannot be told" in evaluate(bundle, f"data.path={new}")["warnings"][0]


def test_a_file_that_the_bundle_was_trained_on_is_measured_with_a_warning(
    rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1", provenance=origin(rows_file)).url
    found = evaluate(bundle, f"data.path={rows_file}")
    assert "trained on rows of this very file" in found["warnings"][0]
    assert found["warnings"][0] in capsys.readouterr().err


def test_a_file_may_hold_one_row_and_one_label(bundle: str, tmp_path: Path) -> None:
    found = evaluate(bundle, f"data.path={write(tmp_path / 'one.csv', [('my invoice', 'billing')])}")
    assert (found["test"]["n"], found["test"]["accuracy"]) == (1, 1)


def test_labels_that_the_bundle_has_never_seen_are_refused_before_the_model_is_loaded(bundle: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [("my invoice", "billing"), ("my roof", "roofing")])
    with pytest.raises(DataError, match="line 3: 1 of its labels are unseen by the bundle: 'roofing'"):
        evaluate(bundle, f"data.path={path}")


def test_training_rows_with_unseen_labels_are_refused_too(bundle: str, rows_file: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", [("my roof", "roofing")])
    with pytest.raises(DataError, match="roofing"):
        evaluate(bundle, f"data.path={rows_file}", f"train.path={train}")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="bundle: a value is missing"):
        run([])


def test_a_precision_that_the_bundle_does_not_have_is_refused(bundle: str, rows_file: Path) -> None:
    with pytest.raises(BundleError, match="has no int8 model"):
        evaluate(bundle, f"data.path={rows_file}", "precision=int8")
    with pytest.raises(ConfigError, match="fp32, int8"):
        evaluate(bundle, f"data.path={rows_file}", "precision=int4")


def test_a_changed_bundle_is_refused_by_name(bundle: str, rows_file: Path) -> None:
    model = Path(bundle) / "model.onnx"
    data = bytearray(model.read_bytes())
    data[100] ^= 1
    model.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        evaluate(bundle, f"data.path={rows_file}")


def test_a_report_with_pictures_is_written_where_it_is_wanted(bundle: str, rows_file: Path, tmp_path: Path) -> None:
    found = evaluate(bundle, f"data.path={rows_file}", f"out={tmp_path / 'out'}")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"report.md", "evaluation.json", "confusion_matrix.png", "reliability.png"}
    assert found["report"] == f"file://{tmp_path / 'out' / 'report.md'}"
    assert json.loads(files["evaluation.json"])["test"] == found["test"]
    assert all(f"]({name})" in files["report.md"].decode() for name in files if name.endswith(".png"))


def test_a_folder_that_cannot_be_written_is_refused_first(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"out=.+: cannot be written"):
        evaluate(bundle, "data.path=no-such-file.csv", f"out={tmp_path / 'out'}")


def test_stdout_is_one_json_object_and_the_table_is_for_people(
    bundle: str, rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, [f"bundle={bundle}", f"data.path={rows_file}"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert {"bundle", "test", "baselines", "seconds"} <= set(found)
    assert "macro-F1" in printed.err
    assert not any(np.isnan(found["test"][name]) for name in ("accuracy", "macro_f1", "ece"))


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(
        f"\n  {key}=" in printed for key in ("bundle", "data.path", "data.text", "data.label", "train.path", "precision", "out")
    )
