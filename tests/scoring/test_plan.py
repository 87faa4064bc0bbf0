import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.scoring.conftest import write_csv

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import BATCH_TOKENS
from pigeonhole.errors import ConfigError
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.plan import Plan, make_plan, settle
from pigeonhole.scoring.source import Wanted, find_files, scan

NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
LATER = datetime(2026, 5, 2, tzinfo=UTC)


def planned(config: ScoreConfig, now: datetime = NOW) -> Plan:
    source = scan(find_files(config.input), Wanted(config.text, config.id, config.max_chars))
    return make_plan(config, open_bundle(config.bundle), source, now)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "in.csv", ["id,text", "1,hello", "2,there"])


def test_the_same_command_finds_its_plan_again(config: ScoreConfig, table: Path) -> None:
    first = settle(config.output, planned(config))
    again = settle(config.output, planned(dataclasses.replace(config, actors=7, max_bad_share=1, core_hour_usd=9), LATER))
    assert again == first
    assert again.created_at == NOW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 2}, "its top_k is 0, not 2"),
        ({"embedding": True}, "its embedding is False, not True"),
        ({"id": "id"}, "its id is None, not id"),
        ({"log": "elsewhere"}, "its log is None, not file://"),
        ({"batch_tokens": 64}, f"its batch_tokens is {BATCH_TOKENS}, not 64"),
        ({"precision": "fp32"}, "int8 (another precision)"),
    ],
)
def test_another_option_is_refused_by_name(config: ScoreConfig, table: Path, change: dict[str, Any], message: str) -> None:
    settle(config.output, planned(config))
    with pytest.raises(ConfigError) as caught:
        settle(config.output, planned(dataclasses.replace(config, **change)))
    assert message in str(caught.value)


def test_an_input_that_changed_is_refused_by_name(config: ScoreConfig, table: Path) -> None:
    folder = dataclasses.replace(config, input=str(table.parent / "in*.csv"))
    settle(config.output, planned(folder))
    other = write_csv(table.with_name("in2.csv"), ["id,text", "1,hello"])
    with pytest.raises(ConfigError, match=r"its input did not have file://.*in2\.csv"):
        settle(config.output, planned(folder))
    other.unlink()
    write_csv(table, ["id,text", "1,hello", "2,THERE"])
    with pytest.raises(ConfigError, match=r"its input file://.*in\.csv has changed since"):
        settle(config.output, planned(folder))
    table.rename(other)
    with pytest.raises(ConfigError, match=r"its input file://.*in\.csv is gone"):
        settle(config.output, planned(folder))


def test_an_output_that_holds_something_else_is_refused_and_left_alone(config: ScoreConfig, table: Path) -> None:
    output = Path(config.output)
    output.mkdir()
    settle(config.output, planned(config))  # an empty folder is as good as none
    (output / "_manifest.json").unlink()
    (output / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"exists already and holds mine\.txt"):
        settle(config.output, planned(config))
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="is a file; scoring writes a folder"):
        settle(str(table), planned(config))
    (output / "_manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the manifest of a scoring job"):
        settle(config.output, planned(config))


def test_a_plan_of_another_release_is_refused(config: ScoreConfig, table: Path) -> None:
    plan = planned(config)
    settle(config.output, msgspec.structs.replace(plan, columns={"label": "other"}))
    with pytest.raises(ConfigError, match="it was made by another release"):
        settle(config.output, plan)


def test_answers_step_aside_for_columns_of_the_same_name(config: ScoreConfig, tmp_path: Path) -> None:
    write_csv(tmp_path / "in.csv", ["label,text", "a,b"])
    assert planned(config).columns == {
        "label": "predicted_label",
        "score": "score",
        "decision": "decision",
        "truncated": "truncated",
    }
    write_csv(tmp_path / "in.csv", ["label,predicted_label,text", "a,b,c"])
    with pytest.raises(ConfigError, match="has columns 'label' and 'predicted_label'"):
        planned(config)


@pytest.mark.parametrize(
    ("name", "expected"), [("out", "parquet"), ("out.parquet/", "parquet"), ("out.csv", "csv"), ("out.jsonl", "jsonl")]
)
def test_the_outputs_name_says_its_format(config: ScoreConfig, table: Path, name: str, expected: str) -> None:
    assert planned(dataclasses.replace(config, output=name)).format == expected


def test_a_shard_of_long_rows_has_fewer_of_them(config: ScoreConfig, tmp_path: Path) -> None:
    """Where rows are longest decides, not their mean."""
    write_csv(tmp_path / "in.csv", ["text", *["short"] * 4096, *["long " * 1600] * 1024])
    assert planned(config).options.shard_rows == (4 << 20) // 8001
    pq.write_table(pa.table({"text": ["short"] * 4096 + ["long " * 1600] * 1024}), tmp_path / "in.parquet")
    assert planned(dataclasses.replace(config, input=str(tmp_path / "in.parquet"))).options.shard_rows == (4 << 20) // 8004


def test_shards_grow_with_the_input(config: ScoreConfig, table: Path) -> None:
    assert planned(config).options.shard_rows == 2048
    assert planned(dataclasses.replace(config, shard_rows=1)).shards == 2
    source = scan(find_files(config.input), Wanted("text", None, 8192))
    big = dataclasses.replace(source.files[0], rows=100_000_000)
    plan = make_plan(config, open_bundle(config.bundle), dataclasses.replace(source, files=(big,)), NOW)
    assert (plan.options.shard_rows, plan.shards) == (8192, 12_208)
