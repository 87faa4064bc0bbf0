"""The alarm's way in the cloud, held to the vendor's own types: topic -> Cloud Build trigger -> build -> Vertex job."""

import json
import re
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml
from google.cloud import aiplatform_v1
from google.cloud.devtools import cloudbuild_v1
from google.protobuf.json_format import ParseError

from pigeonhole.cloud.project import Project
from pigeonhole.drift.alarm import Alarm, alarm_url
from pigeonhole.errors import ConfigError
from pigeonhole.loop.vertex_retrain import check, make_job, run
from pigeonhole.training.vertex import VertexConfig, parse_job

ROOT = Path(__file__).parents[2]
PROJECT = Project("some-project", "europe-west4")
SHA = "0123456789abcdef0123456789abcdef01234567"
VALUES = {
    "PROJECT": PROJECT.id,
    "REGION": PROJECT.region,
    "TOPIC": "pigeonhole-drift",
    "IMAGE": SHA,
    "REPOSITORY": "https://github.com/somebody/pigeonhole",
}


def trigger(changes: Any = None) -> cloudbuild_v1.BuildTrigger:
    content = yaml.safe_load(Template((ROOT / "cloudbuild/triggers/retrain.yaml").read_text()).safe_substitute(VALUES)) | (
        changes or {}
    )
    found: cloudbuild_v1.BuildTrigger = cloudbuild_v1.BuildTrigger.from_json(json.dumps(content), ignore_unknown_fields=False)
    return found


def test_the_job_is_one_of_vertex_and_runs_retrain_on_the_projects_own_places() -> None:
    job = parse_job(make_job(PROJECT, VertexConfig(image=SHA), ["name=tickets", "gate.margin=0.02"]))
    assert isinstance(job, aiplatform_v1.CustomJob)
    (pool,) = job.job_spec.worker_pool_specs
    assert list(pool.container_spec.command) == ["retrain"]
    assert list(pool.container_spec.args) == [
        "name=tickets",
        "gate.margin=0.02",
        f"registry={PROJECT.registry}",
        f"log={PROJECT.log}",
        f"rows=gs://{PROJECT.bucket}/retrain",
    ]
    assert pool.container_spec.image_uri == PROJECT.image("train", SHA)
    assert job.job_spec.service_account == PROJECT.account("train")


@pytest.mark.parametrize(
    ("retraining", "machine", "said"),
    [
        ([], "cpu", "name: a value is missing"),
        (["name=tickets", "log=elsewhere"], "cpu", "log=elsewhere: the job reads and writes the project's own bucket"),
        (["name=tickets", "zebra=1"], "cpu", "zebra=1"),
        (["name=tickets", "window_hours=x"], "cpu", "window_hours"),
        (["name=tickets", "trainer.epoch=3"], "cpu", "did you mean trainer.epochs?"),
        (["name=tickets", "gate.margin=2"], "cpu", "gate.margin=2.0: expected float >= 0 and <= 1"),
        (["name=tickets"], "sweep", "one retraining is one run"),
    ],
)
def test_what_the_job_would_refuse_is_refused_here(retraining: list[str], machine: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        check(VertexConfig(image=SHA, machine=machine), retraining)


def test_a_retraining_has_one_machine() -> None:
    with pytest.raises(ConfigError, match="workers=2: a retraining reads feedback and asks the gate once"):
        check(VertexConfig(image=SHA, workers=2), ["name=tickets"])


def test_help_lists_no_key_that_the_command_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) is None
    keys = set(re.findall(r"^  (\w+)=", capsys.readouterr().out, re.MULTILINE))
    assert {"image", "machine", "hours", "name", "window_hours"} <= keys
    assert not keys & {"registry", "log", "rows", "run", "workers", "sweep", "trials", "parallel"}


def test_the_command_prints_the_job_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    job = run([f"image={SHA}", "machine=gpu", "name=tickets", "--dry-run"])
    assert job is not None
    assert isinstance(parse_job(job), aiplatform_v1.CustomJob)


def test_the_trigger_is_one_of_cloud_build_and_leads_to_the_build() -> None:
    found = trigger()
    assert (ROOT / found.git_file_source.path).is_file()
    build = yaml.safe_load((ROOT / found.git_file_source.path).read_text())
    assert set(found.substitutions) <= set(build["substitutions"])
    missing = {name for name, default in build["substitutions"].items() if not default} - set(found.substitutions)
    assert missing == set()


def test_the_trigger_says_what_makes_the_topic_and_lets_drift_publish_to_it() -> None:
    text = (ROOT / "cloudbuild/triggers/retrain.yaml").read_text(encoding="utf-8")
    account = PROJECT.account("drift").replace(PROJECT.id, "$PROJECT")
    assert "gcloud services enable pubsub.googleapis.com" in text
    assert "gcloud pubsub topics create $TOPIC" in text
    assert f"--member=serviceAccount:{account} --role=roles/pubsub.publisher" in text
    assert "PIGEONHOLE_ALARM_URL=pubsub://" in text


def test_a_key_that_a_trigger_does_not_have_is_refused() -> None:
    with pytest.raises(ParseError):
        trigger({"pubSub": {}})


def test_the_trigger_listens_to_the_topic_that_alarms_go_to_and_reads_what_they_say() -> None:
    found = trigger()
    assert alarm_url(f"pubsub://{found.pubsub_config.topic}")
    (field,) = re.fullmatch(r"\$\(body\.message\.data\.(\w+)\)", found.substitutions["_MODEL"]).groups()  # type: ignore[union-attr]
    assert field in Alarm.__struct_fields__
    pattern = re.search(r'matches\("(.*)"\)', found.filter)
    assert pattern
    assert re.search(pattern[1], "tickets")
    assert not re.search(pattern[1], "tickets; rm -rf")
