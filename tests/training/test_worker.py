import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.conftest import StandIn, stand_in

from pigeonhole.errors import RunError
from pigeonhole.training import cluster, train, worker
from pigeonhole.training.cluster import Place

__all__ = ["stand_in"]

NAME = "projects/some-project/secrets/wandb-api-key/versions/latest"
Answer = Callable[[str, str, Any], tuple[int, Any]]


def test_a_trials_values_become_keys_of_train() -> None:
    given = ["experiment=fast", "--trainer.learning_rate=0.0002", "--trainer.batch_size=32.0", "registry=gs://b/registry"]
    assert worker.read_arguments(given) == [
        "experiment=fast",
        "trainer.learning_rate=0.0002",
        "trainer.batch_size=32",
        "registry=gs://b/registry",
    ]
    names = ["--model.pretrained=org/encoder-v2.0", "--trainer.weight_decay=-0.0", "--name=1.0.0"]
    assert worker.read_arguments(names) == ["model.pretrained=org/encoder-v2.0", "trainer.weight_decay=-0", "name=1.0.0"]
    assert worker.read_arguments(["--help", "--cfg", "job"]) == ["--help", "--cfg", "job"]


def test_the_secret_is_read_as_the_jobs_own_account(stand_in: Callable[[Answer], StandIn]) -> None:
    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        if path.endswith("/token"):
            return 200, {"access_token": "a-token"}
        return 200, {"payload": {"data": base64.b64encode(b"the key\n").decode()}}

    server = stand_in(answer)
    host = f"http://{server.host}"
    assert worker.fetch_secret(NAME, host, host) == "the key"
    assert [path for _, path, _ in server.asked] == [
        "/computeMetadata/v1/instance/service-accounts/default/token",
        f"/v1/{NAME}:access",
    ]
    metadata, secrets = server.headers
    assert (metadata["metadata-flavor"], secrets["authorization"]) == ("Google", "Bearer a-token")


def test_help_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.run(["--help"]) is None
    assert worker.SECRET in capsys.readouterr().out


def test_a_missing_role_is_named_and_the_run_goes_on(
    stand_in: Callable[[Answer], StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    server = stand_in(lambda _, path, __: (200, {"access_token": "t"}) if path.endswith("/token") else (403, {}))
    host = f"http://{server.host}"
    assert worker.fetch_secret(NAME, host, host) == ""
    assert "403 (the job's account needs roles/secretmanager.secretAccessor" in capsys.readouterr().err


def test_no_metadata_server_is_told_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.fetch_secret(NAME, "http://127.0.0.1:9", "http://127.0.0.1:9") == ""
    assert "cannot be reached" in capsys.readouterr().err


def test_an_answer_without_a_payload_is_refused(stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(lambda *_: (200, {"access_token": "t"}))
    host = f"http://{server.host}"
    with pytest.raises(RunError, match="not an answer of Secret Manager"):
        worker.fetch_secret(NAME, host, host)


def test_a_trial_reports_the_best_epoch_under_the_name_that_the_sweep_asks_for(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    epochs = [
        {"step": 10, "validation_macro_f1": 0.8},
        {"step": 20, "validation_macro_f1": 0.9},
        {"step": 30, "validation_macro_f1": 0.7},
    ]
    history.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    worker.report(history, tmp_path / "hypertune/output.metrics", "7")
    (line,) = (tmp_path / "hypertune/output.metrics").read_text().splitlines()
    found = json.loads(line)
    assert (found["trial"], found[worker.METRIC], found["global_step"]) == ("7", "0.9", "20")


def test_the_worker_trains_with_the_key_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(arguments: list[str]) -> dict[str, Any]:
        seen.extend([arguments, os.environ.get("WANDB_API_KEY")])
        (tmp_path / "history.jsonl").write_text(json.dumps({"step": 1, "validation_macro_f1": 0.5}) + "\n")
        return {"run": str(tmp_path)}

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(worker, "fetch_secret", lambda name: f"key of {name}")
    monkeypatch.setenv(worker.SECRET, NAME)
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv(worker.METRIC_FILE, str(tmp_path / "metrics"))
    assert worker.run(["--seed=1.0"]) == {"run": str(tmp_path)}
    assert seen == [["seed=1"], f"key of {NAME}"]
    assert (tmp_path / "metrics").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_machines_the_first_one_alone_fetches_and_sends_the_checkpoint(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(rank, 2, "127.0.0.1", 2222)
    bucket, weights = tmp_path / "bucket/job/model.safetensors", tmp_path / "run/checkpoint/model.safetensors"
    bucket.parent.mkdir(parents=True)
    bucket.write_text("before")
    found: list[bool] = []

    def together(told: Place, arguments: list[str]) -> dict[str, Any]:
        assert (told, arguments) == (place, [f"out={tmp_path / 'run'}"])
        found.append(weights.exists() and weights.read_text() == "before")
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_text("after all of it")
        return {"machine": rank}

    monkeypatch.setattr(cluster, "train_together", together)
    trained = worker.train_carried([f"out={tmp_path / 'run'}"], (tmp_path / "bucket").as_uri(), "job", place)
    assert trained == {"machine": rank}
    assert found == [rank == 0]
    assert (bucket.read_text() == "after all of it") is (rank == 0)


def test_the_metric_is_one_that_training_writes_down(tiny_run: dict[str, Any]) -> None:
    first = (Path(tiny_run["run"]) / "history.jsonl").read_text().splitlines()[0]
    assert worker.METRIC in json.loads(first)
    assert "step" in json.loads(first)
