import csv
import dataclasses
import io
import json
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.errors import InferenceError, RunError
from pigeonhole.prediction_log import read_window, sketch
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.plan import Plan, make_plan, make_shards
from pigeonhole.scoring.shard import Answered, answer, commit, encode, prediction_ids
from pigeonhole.scoring.source import Rows, Wanted, find_files, read, scan

NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)


@pytest.fixture
def classifier(sealed_bundle: Path) -> Classifier:
    return Classifier.open(open_bundle(str(sealed_bundle)))


def prepared(config: ScoreConfig, table: pa.Table) -> tuple[Plan, Rows]:
    path = Path(config.output).parent / "in.parquet"
    pq.write_table(table, path)
    wanted = Wanted(config.text, config.id, config.max_chars)
    source = scan(find_files(str(path)), wanted)
    plan = make_plan(dataclasses.replace(config, input=str(path)), open_bundle(config.bundle), source, NOW)
    [shard] = make_shards(source, plan.options.shard_rows)
    return plan, read(source, shard.spans, wanted)


def part(config: ScoreConfig, format_: str) -> bytes:
    return Path(config.output, f"part-000000.{format_}").read_bytes()


def test_answers_are_the_classifiers_own_bit_for_bit(config: ScoreConfig, classifier: Classifier, texts: list[str]) -> None:
    chosen = dataclasses.replace(config, top_k=2, probabilities=True, embedding=True)
    plan, rows = prepared(chosen, pa.table({"text": texts, "n": range(len(texts))}))
    receipt = commit(config.output, plan, 0, answer(classifier, rows))
    table = pq.read_table(Path(config.output, "part-000000.parquet"))
    assert receipt.rows == table.num_rows == 300
    assert table.column("n").to_pylist() == list(range(300))
    for text, row in zip(texts, table.to_pylist(), strict=True):
        [alone] = classifier.predict([text])
        assert (row["label"], row["score"], row["decision"]) == (alone.label, alone.score, alone.decision)
        assert row["probabilities"] == alone.probabilities.tolist()
        assert np.array_equal(np.array(row["embedding"], np.float32), alone.embedding)
        assert row["top_k"][0] == {"label": alone.label, "score": alone.score}
        assert row["top_k"][1]["score"] == sorted(alone.probabilities)[-2]
    assert json.loads(table.schema.metadata[b"pigeonhole.labels"]) == list(classifier.labels)


def test_doing_it_twice_leaves_what_doing_it_once_leaves(config: ScoreConfig, classifier: Classifier, texts: list[str]) -> None:
    chosen = dataclasses.replace(config, log=str(Path(config.output).with_name("log")))
    plan, rows = prepared(chosen, pa.table({"text": [*texts, None]}))

    def files() -> dict[str, bytes]:
        folder = Path(config.output).parent
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    commit(config.output, plan, 0, answer(classifier, rows))
    once = files()
    for left_out in ("_shards/part-000000.json", "part-000000.parquet", "_errors/part-000000.jsonl"):
        Path(config.output, left_out).unlink()
        commit(config.output, plan, 0, answer(classifier, rows))
        assert files() == once


def test_a_part_with_other_bytes_is_not_taken_for_done(config: ScoreConfig, classifier: Classifier) -> None:
    plan, rows = prepared(config, pa.table({"text": ["hello"]}))
    Path(config.output).mkdir()
    Path(config.output, "part-000000.parquet").write_bytes(b"other")
    with pytest.raises(RunError, match=r"part-000000\.parquet: is there already with other bytes"):
        commit(config.output, plan, 0, answer(classifier, rows))


def test_log_records_can_be_read_as_the_services_can(config: ScoreConfig, classifier: Classifier, texts: list[str]) -> None:
    log = str(Path(config.output).with_name("log"))
    plan, rows = prepared(dataclasses.replace(config, log=log, log_text="none"), pa.table({"text": texts}))
    commit(config.output, plan, 0, answer(classifier, rows))
    window = read_window(log, NOW, NOW + timedelta(seconds=1))
    records = {record.prediction_id: record for record in window}
    table = pq.read_table(Path(config.output, "part-000000.parquet"))
    assert len(records) == 300
    assert not records.keys() & set(prediction_ids(plan, 1, 300))  # readers of the log would drop a second shard's as duplicates
    for row in table.to_pylist():
        record = records[row["prediction_id"]]
        assert (record.label, record.score, record.features.n_chars) == (row["label"], row["score"], len(row["text"]))
        assert record.text is None
        assert record.features.sketch == sketch(classifier.predict([row["text"]])[0].embedding[None, :])[0].tolist()
        identity = uuid.UUID(row["prediction_id"])
        assert (identity.version, identity.variant) == (7, uuid.RFC_4122)
        assert identity.int >> 80 == int(NOW.timestamp() * 1000)
    assert dataclasses.asdict(window.counts) == dict.fromkeys(dataclasses.asdict(window.counts), 0) | {"records": 300}


def test_csv_and_jsonl_parts_carry_the_same_answers(config: ScoreConfig, classifier: Classifier) -> None:
    table = pa.table(
        {
            "text": ["hello, there", 'a "quoted"\nline'],
            "n": [1, None],
            "when": pa.array([datetime(2026, 1, 2), None]),  # noqa: DTZ001  a table may hold times without a zone
            "price": [Decimal("1.50"), None],
        }
    )
    chosen = dataclasses.replace(config, probabilities=True, top_k=1)
    plan, rows = prepared(dataclasses.replace(chosen, output=f"{config.output}.csv"), table)
    found = answer(classifier, rows)
    commit(config.output, plan, 0, found)
    first, second = csv.DictReader(io.StringIO(part(config, "csv").decode(), newline=""))
    assert (first["text"], first["n"], first["price"]) == ("hello, there", "1", "1.50")
    assert (second["text"], second["n"], second["when"]) == ('a "quoted"\nline', "", "")
    assert first["when"] == "2026-01-02 00:00:00"
    assert float(first["score"]) == found.predictions[0].score
    assert json.loads(first["probabilities"]) == found.predictions[0].probabilities.tolist()
    plan, rows = prepared(dataclasses.replace(chosen, output=f"{config.output}.jsonl"), table)
    commit(f"{config.output}.jsonl", plan, 0, found)
    lines = [json.loads(line) for line in Path(f"{config.output}.jsonl", "part-000000.jsonl").read_text().splitlines()]
    assert lines[1]["n"] is None
    assert lines[0]["probabilities"] == dict(zip(classifier.labels, found.predictions[0].probabilities.tolist(), strict=True))
    assert lines[0]["top_k"] == [{"label": found.predictions[0].label, "score": found.predictions[0].score}]


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_times_that_python_has_no_type_for_are_written_as_they_read(
    config: ScoreConfig, classifier: Classifier, format_: str
) -> None:
    late = pa.array([1_767_225_600_000_000_001, None], pa.timestamp("ns"))
    table = pa.table({"text": ["hello", "there"], "when": late, "day": pa.array([2_932_897, 0], pa.date32())})
    plan, rows = prepared(dataclasses.replace(config, output=f"{config.output}.{format_}"), table)
    data = encode(plan, answer(classifier, rows).table).decode()
    found = csv.DictReader(io.StringIO(data, newline="")) if format_ == "csv" else map(json.loads, data.splitlines())
    first, second = found
    assert (first["when"], first["day"]) == ("2026-01-01 00:00:00.000000001", "10000-01-01")
    assert (second["when"] or None, second["day"]) == (None, "1970-01-01")


def test_a_text_without_a_usable_answer_is_a_bad_row(config: ScoreConfig, classifier: Classifier) -> None:
    class Moody(Classifier):
        def predict(self, texts: Any) -> list[Prediction]:
            if any("poison" in text for text in texts):
                raise InferenceError("no number")
            return classifier.predict(texts)

    moody = Moody(classifier.manifest, classifier.precision, classifier._session, classifier._encoder, classifier._judge)
    plan, rows = prepared(config, pa.table({"text": ["fine", "poison", "well"]}))
    found = answer(moody, rows)
    assert found.texts == ["fine", "well"]
    assert [(bad.row, bad.reason) for bad in found.bad] == [(2, "the model gave no usable answer")]
    assert commit(config.output, plan, 0, found).bad == 1


def test_a_shard_of_bad_rows_alone_leaves_an_empty_part(config: ScoreConfig, classifier: Classifier) -> None:
    plan, rows = prepared(config, pa.table({"text": pa.array([None, " "], pa.string())}))
    receipt = commit(config.output, plan, 0, answer(classifier, rows))
    assert (receipt.rows, receipt.bad) == (0, 2)
    assert pq.read_table(Path(config.output, "part-000000.parquet")).num_rows == 0
    errors = [json.loads(line) for line in Path(config.output, "_errors/part-000000.jsonl").read_text().splitlines()]
    assert [(error["row"], error["reason"]) for error in errors] == [(1, "null in place of a text"), (2, "the text is blank")]


def test_a_part_is_a_function_of_its_rows(config: ScoreConfig, classifier: Classifier, texts: list[str]) -> None:
    plan, rows = prepared(config, pa.table({"text": texts}))
    found = answer(classifier, rows)
    empty = Answered(found.table.slice(0, 0), [], [], [])
    assert encode(plan, found.table) == encode(plan, pa.table({"text": texts}))
    assert encode(plan, empty.table) != encode(plan, found.table)
