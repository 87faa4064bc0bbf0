import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import wait_until
from wandb.proto import wandb_internal_pb2

from pigeonhole.errors import ConfigError
from pigeonhole.training import tracking
from pigeonhole.training.tracking import open_tracker


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key in the environment and none in a home folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))


def track(backend: str, folder: Path) -> None:
    bundle = folder / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")
    tracker = open_tracker(backend, folder, "tiny", "project", None, {"seed": 0})
    tracker.log({"loss": 0.5}, 1)
    tracker.finish({"test/accuracy": 0.9}, {}, bundle)


def test_without_a_key_wandb_keeps_the_run_offline_and_says_so(
    tmp_path: Path, no_account: None, capsys: pytest.CaptureFixture[str]
) -> None:
    track("wandb", tmp_path / "run")
    assert "W&B: no API key found, this run is kept offline; later: `wandb sync" in capsys.readouterr().err
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def records_of(file: Path) -> Iterator[Any]:
    """What an offline run has written down: after seven bytes, blocks of 32 KiB of records in LevelDB's log format."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32_768 - place % 32_768
        if left < 7:
            place += left
            continue
        size, whole_or_last = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6] in (1, 4)
        if place + 7 + size > len(data):
            return  # it is being written
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if whole_or_last:
            yield wandb_internal_pb2.Record.FromString(record)  # type: ignore[attr-defined]  # made by protoc, without types
            record = b""


def kinds_of(file: Path) -> dict[str, Any]:
    return {str(record.WhichOneof("record_type")): record for record in records_of(file)}


def test_an_offline_run_holds_its_metrics_and_the_bundle_as_an_artifact_of_its_own(tmp_path: Path, no_account: None) -> None:
    track("wandb", tmp_path / "run")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    wait_until(lambda: "exit" in kinds_of(file))  # W&B's own process writes it
    kept = kinds_of(file)
    assert kept["history"].history.step.num == 1
    assert 'value_json: "0.5"' in str(kept["history"].history)
    artifact = kept["artifact"].artifact
    assert (artifact.name, artifact.type) == (f"bundle-{kept['run'].run.run_id}", "bundle")
    assert json.loads(artifact.metadata) == {"test/accuracy": 0.9}
    assert [entry.path for entry in artifact.manifest.contents] == ["manifest.json"]


def test_a_server_out_of_reach_does_not_stop_the_run(
    tmp_path: Path, no_account: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 2.0)
    track("wandb", tmp_path / "run")
    assert "this run is kept offline" in capsys.readouterr().err
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_disabled_by_wandbs_own_switch_it_writes_nothing(
    tmp_path: Path, no_account: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    track("wandb", tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.wandb"))


@pytest.mark.parametrize("mode", ["", "ofline"])
def test_a_mode_that_wandb_does_not_know_is_a_mistake_told_in_one_line(
    tmp_path: Path, no_account: None, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(ConfigError, match=f"^WANDB_MODE={mode}: allowed are online, offline"):
        track("wandb", tmp_path / "run")


def test_jsonl_keeps_steps_and_summary(tmp_path: Path) -> None:
    track("jsonl", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "tracking.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"summary": {"test/accuracy": 0.9}}]


def test_none_tracks_nothing(tmp_path: Path) -> None:
    track("none", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["bundle"]
