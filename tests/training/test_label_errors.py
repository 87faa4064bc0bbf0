import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import OBJECTS, tiny_rows, write_rows

from pigeonhole.configuration import compose
from pigeonhole.dataset.patch import Patch, read_patch, write_review
from pigeonhole.dataset.read import Row
from pigeonhole.errors import ConfigError, DataError, NotFoundError, RunError
from pigeonhole.training.batches import TokenizedRows
from pigeonhole.training.config import ModelConfig
from pigeonhole.training.frozen import embed_texts
from pigeonhole.training.label_errors import LabelErrorsConfig, Suspects, find_suspects, out_of_fold, run, to_review
from pigeonhole.training.model import load_model, load_tokenizer
from pigeonhole.training.pretrained import SCRATCH, Pretrained
from pigeonhole.training.trainer import embed

PLANTED = {3: "account", 27: "billing", 60: "delivery", 71: "account", 110: "delivery", 145: "billing"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """Rows with six wrong labels."""
    rows = [(text, PLANTED.get(place, label)) for place, (text, label) in enumerate(tiny_rows())]
    return write_rows(tmp_path_factory.mktemp("planted") / "rows.csv", rows), rows


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:  # Excel needs the mark
        return list(csv.DictReader(stream))


def test_planted_labels_stand_on_top_and_the_right_one_is_suggested_and_a_reviewed_one_is_gone(
    planted: tuple[Path, list[tuple[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, rows = planted
    asked = [f"data.path={path}", "data.trigger_words=report", "threads=1"]
    result = run([*asked, f"out={tmp_path / 'review.csv'}"])
    assert f"beside this line's data keys: uv run train … data.patch={tmp_path / 'review.csv'}" in capsys.readouterr().err
    review = read(tmp_path / "review.csv")
    wrong = {rows[place][0]: tiny_rows()[place][1] for place in PLANTED}
    top = review[: len(PLANTED)]
    assert sum(line["text"] in wrong for line in top) >= 5
    assert all(line["suggestion"] == wrong[line["text"]] for line in top if line["text"] in wrong)
    assert result["listed"] == len(review)
    assert abs(result["estimated_errors"] - len(PLANTED)) <= 6

    review[0]["decision"] = "keep"
    with (tmp_path / "reviewed.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, review[0].keys())
        writer.writeheader()
        writer.writerows(review)
    again = run([*asked, f"data.patch={tmp_path / 'reviewed.csv'}", f"out={tmp_path / 'again.csv'}"])
    assert f"behind the lines of {tmp_path / 'reviewed.csv'}" in capsys.readouterr().err
    assert [line["text"] for line in read(tmp_path / "again.csv")] == [line["text"] for line in review[1:]]
    assert again["patch"]["kept"] == 1


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out=.*/file: cannot be written"):
        run(["data.path=nowhere.csv", f"out={tmp_path}/file/review.csv"])


def test_no_file_that_is_read_is_written_over_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What people decided would be gone."""
    monkeypatch.chdir(tmp_path)
    Path("reviews").mkdir()
    for out, message in (
        ("label-errors.csv", "is read here, and would be written over"),
        (f"file://{tmp_path}/my.csv", "is read here, and would be written over"),
        ("reviews", "is a folder, a file is needed"),
    ):
        with pytest.raises(ConfigError, match=f"out={out}: {message}"):
            run(["data.path=my.csv", "data.patch=label-errors.csv", f"out={out}"])


@pytest.mark.parametrize("decision", ["keep", "relabel", "remove", "kepe"])
def test_a_file_that_somebody_has_decided_in_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decision: str
) -> None:
    """The same command once more, after an afternoon of work in its file."""
    monkeypatch.chdir(tmp_path)
    reviewed = f"text,label,suggestion,confidence,decision,new_label\na text,a,b,0.1,,b\nanother,a,b,0.2,{decision},b\n"
    Path("label-errors.csv").write_text(reviewed, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"out=label-errors\.csv: holds decisions, .*; give it as data\.patch, or choose"):
        run(["data.path=my.csv"])
    assert Path("label-errors.csv").read_text(encoding="utf-8") == reviewed
    Path("label-errors.csv").write_text(reviewed.replace(decision, ""), encoding="utf-8")
    with pytest.raises(NotFoundError, match=r"my\.csv"):  # nobody has decided: it goes on to the rows
        run(["data.path=my.csv"])


def test_an_encoder_that_gives_no_numbers_is_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Pretrained(SCRATCH, local=True), ["a text", "another text"])
    model = load_model(Pretrained(SCRATCH, local=True), ["a", "b"], tokenizer, averaging_layer=False, max_length=16)
    with torch.no_grad():
        for parameter in model.body.parameters():
            parameter.fill_(float("nan"))
    rows = TokenizedRows([[2, 5, 3]], np.zeros(1, np.int64))
    with pytest.raises(RunError, match=r"no numbers: is the model of model\.pretrained damaged"):
        embed(model, rows)


def test_texts_are_read_as_a_training_would_read_them(capsys: pytest.CaptureFixture[str]) -> None:
    model = ModelConfig(pretrained=SCRATCH, sha256=None, max_length=8, averaging_layer=False)
    texts = ["one two three four five six seven eight nine ten", "one two"]
    cut = embed_texts(model, ["a", "b"], texts, seed=0, threads=1)
    assert "1 of 2 texts are longer than model.max_length and were cut" in capsys.readouterr().err
    read = embed_texts(replace(model, windowing="mean", window_overlap=2), ["a", "b"], texts, seed=0, threads=1)
    assert "were cut" not in capsys.readouterr().err
    assert np.array_equal(cut[1], read[1])
    assert not np.array_equal(cut[0], read[0])
    flat = embed_texts(replace(model, layers=1), ["a", "b"], texts, seed=0, threads=1)
    assert not np.array_equal(cut[1], flat[1])


def test_each_row_is_judged_by_fits_that_never_saw_it() -> None:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(40, 64)).astype(np.float32)
    label_ids = np.arange(40) % 2  # nothing to learn: a fit on the row itself would know it by heart
    probabilities = out_of_fold(embeddings, label_ids, 2, folds=5, seed=0)
    assert (probabilities.argmax(axis=1) == label_ids).mean() < 0.8
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(40))


def test_a_label_that_the_other_folds_lack_gets_nothing_and_the_scale_of_embeddings_means_nothing() -> None:
    embeddings = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    label_ids = 1 + (embeddings[:, 0] > 0)
    label_ids[7] = 0  # alone
    probabilities = out_of_fold(embeddings, label_ids, 3, folds=5, seed=0)
    assert probabilities[7, 0] == 0
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    assert out_of_fold(1000 * embeddings, label_ids, 3, folds=5, seed=0) == pytest.approx(probabilities, abs=0.01)


def test_a_row_counts_for_the_likeliest_of_the_labels_that_are_as_probable_as_usual() -> None:
    """Worked by hand: usual are 0.46, 0.42 and 0.425; the third row counts for label 2, the last one for label 1."""
    probabilities = [[0.46, 0.44, 0.1], [0.2, 0.4, 0.4], [0.06, 0.44, 0.5], [0.2, 0.35, 0.45], [0.1, 0.5, 0.4]]
    assert find_suspects(np.array(probabilities), np.array([0, 1, 1, 2, 2])).estimated == 2


def test_a_review_asks_once_and_about_nothing_that_a_patch_has_decided(tmp_path: Path) -> None:
    """A patch with two decisions on one text and label is refused, as is one on a label that the data do not have."""
    said = [("one", "a"), ("two", "a"), ("one", "a"), ("one", "b"), ("three", "b")]
    rows = [Row(text, label, line) for line, (text, label) in enumerate(said, 2)]
    found = Suspects(np.arange(5), np.array([1, 1, 1, 0, 0]), np.arange(5) / 10, 5, 0.0)
    asked = [(rows[0], "b", 0.0), (rows[1], "b", 0.1), (rows[3], "a", pytest.approx(0.3)), (rows[4], "a", 0.4)]
    assert to_review(found, rows, ["a", "b"], None) == asked
    patch = Patch("p.csv", "", {("one", "c"): "a"}, frozenset(), frozenset({("three", "b")}))
    assert to_review(found, rows, ["a", "b"], patch) == asked[1:3]
    write_review(str(tmp_path / "review.csv"), to_review(found, rows, ["a", "b"], None))
    (tmp_path / "review.csv").write_text((tmp_path / "review.csv").read_text().replace(",,b", ",relabel,b"))
    assert read_patch(str(tmp_path / "review.csv"), None).relabelled == {("one", "a"): "b", ("two", "a"): "b"}


def test_suspects_are_ranked_by_self_confidence_and_counted_by_the_confident_joint() -> None:
    """Worked by hand: the usual probabilities are 0.6 for label 0 and 0.5 for label 1."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.45, 0.55], [0.9, 0.1], [0.05, 0.95]])
    found = find_suspects(probabilities, np.array([0, 0, 0, 1, 1, 1]))
    usual = (0.9 + 0.8 + 0.1) / 3, (0.55 + 0.1 + 0.95) / 3
    assert found.places.tolist() == [2, 4]
    assert found.suggested_ids.tolist() == [1, 0]
    assert found.self_confidence.tolist() == [0.1, 0.1]
    assert usual[0] <= 0.9
    assert found.estimated == 2
    assert found.accuracy == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("xx", "2 rows, 1 labels with more than one of them; two such labels and 5 rows are needed"),
        ("xxxxxxxy", "8 rows, 1 labels with more than one of them"),
        ("xxyy", "4 rows, 2 labels with more than one of them"),
    ],
)
def test_rows_whose_fits_would_know_one_label_alone_or_have_no_rows_are_refused(
    tmp_path: Path, labels: str, message: str
) -> None:
    path = write_rows(tmp_path / "few.csv", [(f"text number {place}", label) for place, label in enumerate(labels)])
    with pytest.raises(DataError, match=message):
        run([f"data.path={path}", "model=tiny", f"out={tmp_path / 'review.csv'}"])


def test_no_more_rows_are_listed_than_were_asked_for(tiny_data: Path, tmp_path: Path) -> None:
    asked = [f"data.path={tiny_data}", "data.trigger_words=report", "model=tiny", "threads=1", "folds=2"]
    found = run([*asked, "top=3", "seed=3", f"out={tmp_path / 'review.csv'}"])
    assert (found["listed"], len(read(tmp_path / "review.csv"))) == (3, 3)
    texts, said = zip(*tiny_rows(), strict=True)
    label_ids = np.array([sorted(OBJECTS).index(label) for label in said])
    model = compose(LabelErrorsConfig, "label_errors", asked).model
    embeddings = embed_texts(model, sorted(OBJECTS), texts, seed=3, threads=1)
    expected = find_suspects(out_of_fold(embeddings, label_ids, 3, folds=2, seed=3), label_ids)
    assert (found["estimated_errors"], found["out_of_fold_accuracy"]) == (expected.estimated, expected.accuracy)
    with pytest.raises(ConfigError, match=r"data.task=multi_label: label-errors judges one label a text"):
        run([*asked, "data.task=multi_label"])
    with pytest.raises(DataError, match="checksum"):
        run([*asked, f"data.sha256={'0' * 64}"])
    with pytest.raises(ConfigError, match=r"data.taxonomy: a review, as data.patch, speaks of the labels as they stand"):
        run([*asked, "data.taxonomy=labels.yaml"])
