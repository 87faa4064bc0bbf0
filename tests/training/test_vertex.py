import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1
from google.cloud.aiplatform_v1.services.job_service.transports.rest import JobServiceRestTransport
from tests.cloud.conftest import StandIn, stand_in

from pigeonhole.cloud.project import Project
from pigeonhole.configuration import groups
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.training import vertex
from pigeonhole.training.space import read_space
from pigeonhole.training.vertex import VertexConfig, make_job, parse_job
from pigeonhole.training.worker import METRIC

__all__ = ["stand_in"]

PROJECT = Project("some-project", "europe-west4")
SHA = "0123456789abcdef0123456789abcdef01234567"
Answer = Callable[[str, str, Any], tuple[int, Any]]


def job(*training: str, **settings: Any) -> dict[str, Any]:
    return make_job(PROJECT, VertexConfig(image=SHA, **settings), training)


def pools(job: dict[str, Any]) -> list[dict[str, Any]]:
    spec: dict[str, Any] = job.get("jobSpec") or job["trialJobSpec"]
    return list(spec["workerPoolSpecs"])


def pool(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = pools(job)
    return found


@pytest.mark.parametrize("name", groups()["sweep"])
def test_every_sweep_is_a_study_of_vertex(name: str) -> None:
    assert isinstance(parse_job(job(machine="sweep", sweep=name)), aiplatform_v1.HyperparameterTuningJob)


@pytest.mark.parametrize("machine", ["cpu", "gpu", "spot", "sweep"])
def test_every_machine_gives_a_job_of_vertex(machine: str) -> None:
    kind = aiplatform_v1.HyperparameterTuningJob if machine == "sweep" else aiplatform_v1.CustomJob
    assert isinstance(parse_job(job("experiment=fast", machine=machine)), kind)


def test_machines_differ_from_cpu_in_what_they_are_for() -> None:
    cpu, gpu, spot = (job(machine=machine) for machine in ("cpu", "gpu", "spot"))
    assert pool(cpu)["machineSpec"] == {"machineType": "n1-standard-8"}
    assert pool(gpu)["machineSpec"]["acceleratorType"] == "NVIDIA_TESLA_T4"
    assert pool(gpu)["containerSpec"] == pool(cpu)["containerSpec"]
    assert spot["jobSpec"]["scheduling"] == {"timeout": "21600s", "strategy": "SPOT", "restartJobOnWorkerRestart": True}


@pytest.mark.parametrize("machine", ["cpu", "gpu", "spot"])
def test_several_machines_are_a_first_one_and_others_like_it(machine: str) -> None:
    one, four = job(machine=machine), job(machine=machine, workers=4)
    assert isinstance(parse_job(four), aiplatform_v1.CustomJob)
    first, others = pools(four)
    assert first == pool(one)
    assert others == {**first, "replicaCount": 3}
    assert four["displayName"] == f"pigeonhole-train-{SHA[:7]}-4x{machine}"
    assert four["jobSpec"]["scheduling"]["restartJobOnWorkerRestart"] is True


def test_the_keys_of_train_reach_the_container_and_the_bundle_reaches_the_registry() -> None:
    container = pool(job("experiment=fast", "trainer.epochs=2"))["containerSpec"]
    assert container["args"] == ["experiment=fast", "trainer.epochs=2", "registry=gs://some-project-pigeonhole/registry"]
    assert container["imageUri"] == PROJECT.image("train", SHA)
    assert container["command"] == ["vertex-worker"]


def test_the_key_is_named_and_not_given() -> None:
    (variable,) = pool(job())["containerSpec"]["env"]
    assert variable == {
        "name": "PIGEONHOLE_WANDB_SECRET",
        "value": "projects/some-project/secrets/wandb-api-key/versions/latest",
    }


def test_a_sweep_varies_keys_of_train_and_asks_for_the_metric_that_the_worker_reports() -> None:
    study = job(machine="sweep", trials=2, parallel=5)
    assert {found["parameterId"] for found in study["studySpec"]["parameters"]} == set(read_space("learning_rates").keys)
    assert [metric["metricId"] for metric in study["studySpec"]["metrics"]] == [METRIC]
    assert study["parallelTrialCount"] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["image=latest"], "expected the commit"),
        ([f"image={SHA}", "machine=big"], "machine=big: expected str one of cpu, gpu, spot, sweep"),
        ([f"image={SHA}", "machine_type=n1-standrad-4"], "machine_type=n1-standrad-4"),
        ([f"image={SHA}", "machine=gpu", "machine_type=e2-standard-4"], "machine=gpu runs on n1-standard-4"),
        ([f"image={SHA}", "hours=1000"], "hours=1000"),
        ([f"image={SHA}", "workers=0"], "workers=0"),
        ([f"image={SHA}", "workers=2", "machine=sweep"], "workers=2: a sweep's runs have one machine each"),
        ([f"image={SHA}", "machine=sweep", "sweep=rates"], "sweep=rates: there is no such sweep"),
        ([f"image={SHA}", "machine=sweep", "sweep=seeds", "trials=1"], "trials=1: one for each seed, expected 2 to 10000"),
        ([f"image={SHA}", "machine=sweep", "trainer.batch_size=8"], "trainer.batch_size=8: the sweep itself says so"),
        ([f"image={SHA}", "machine=sweep", "sweep=regularisation", "model=tfidf"], "trainer.refit_head=True: is for encoders"),
        ([f"image={SHA}", "trainer.epoch=2"], "did you mean trainer.epochs"),
        ([f"image={SHA}", "trainer.epochs=-1"], "trainer.epochs=-1"),
        ([f"image={SHA}", "experiment=fats"], "fats"),
        ([f"image={SHA}", "data.path=my.csv"], "does not see this machine's files"),
        ([f"image={SHA}", "data.path=file:///home/me/my.csv"], "does not see this machine's files"),
        ([f"image={SHA}", "data.test_path=my.csv"], "data.test_path=my.csv: the job does not see"),
        ([f"image={SHA}", "data.path=hub://o/n", "data.taxonomy=labels.yaml"], "data.taxonomy=labels.yaml: the job does not see"),
        ([f"image={SHA}", "trainer.teacher=runs/x/bundle"], "trainer.teacher=runs/x/bundle: the job does not see"),
        ([f"image={SHA}", "model.pretrained=file:///m"], "model.pretrained=file:///m: the job sees neither"),
        ([f"image={SHA}", "model.pretrained=gs://bucket/m"], "model.pretrained=gs://bucket/m: the job sees neither"),
        ([f"image={SHA}", "model.pretrained=tests"], "model.pretrained=tests: the job sees neither"),
        ([f"image={SHA}", "out=gs://bucket/run"], "out=gs://bucket/run: a run works in a folder of its own machine"),
        ([f"image={SHA}", "name=a/b"], "name=a/b: expected lower-case letters"),
        ([f"image={SHA}", "export.int8=false"], "export.served=int8 with export.int8=false"),
        ([f"image={SHA}", "data.slices=numbers=("], r"data.slices: '\(' is no regular expression"),
        (
            [f"image={SHA}", "data.path=package://pigeonhole/none.csv"],
            "data.path=package://pigeonhole/none.csv: there is no such file",
        ),
        ([f"image={SHA}", "registry=here"], "registry: a job publishes to gs://some-project-pigeonhole/registry"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    with pytest.raises(ConfigError, match=told):
        vertex.run(arguments)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"imageUri"', '"imageUrl"'),
        ('"strategy": "SPOT"', '"strategy": "CHEAP"'),
        ('"NVIDIA_TESLA_T4"', '"NVIDIA_TESLA_T5"'),
        ('"21600s"', '"six hours"'),
        ('"replicaCount": 1', '"replicaCount": "one"'),
        ('"restartJobOnWorkerRestart"', '"restartOnWorkerRestart"'),
        ('"jobSpec"', '"jobSpecification"'),
    ],
)
def test_a_planted_fault_is_caught_by_vertexs_type(right: str, wrong: str) -> None:
    text = json.dumps(job(machine="spot"))
    assert right in text
    with pytest.raises(ConfigError, match="not a CustomJob"):
        parse_job(json.loads(text.replace(right, wrong, 1)))


def test_the_command_prints_the_job_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    shown = vertex.run([f"image={SHA}", "machine=gpu", "experiment=fast", "--dry-run"])
    assert shown == job("experiment=fast", machine="gpu")


def test_help_lists_both_kinds_of_keys() -> None:
    with redirect_stdout(io.StringIO()) as printed:
        assert vertex.run(["--help"]) is None
    assert "machine=cpu" in printed.getvalue()
    assert "trainer.learning_rate" in printed.getvalue()


@pytest.mark.parametrize(
    ("machine", "path", "kind"),
    [
        ("cpu", "customJobs", aiplatform_v1.CustomJob),
        ("sweep", "hyperparameterTuningJobs", aiplatform_v1.HyperparameterTuningJob),
    ],
)
def test_the_vendors_client_sends_the_job_that_was_printed(
    machine: str, path: str, kind: Any, stand_in: Callable[[Answer], StandIn]
) -> None:
    made = f"{PROJECT.parent}/{path}/1"
    server = stand_in(lambda *_: (200, {"name": made}))
    transport = JobServiceRestTransport(host=server.host, url_scheme="http", credentials=AnonymousCredentials())
    printed = job("experiment=fast", machine=machine)
    assert vertex.submit(aiplatform_v1.JobServiceClient(transport=transport), PROJECT, printed) == made
    ((method, sent_to, body),) = server.asked
    assert (method, sent_to.partition("?")[0]) == ("POST", f"/v1/{PROJECT.parent}/{path}")
    assert kind.from_json(json.dumps(body), ignore_unknown_fields=False) == parse_job(printed)


def test_a_no_of_vertex_is_told_without_a_traceback(stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(lambda *_: (429, {"error": {"code": 429, "message": "Quota exceeded for cpus", "status": "x"}}))
    transport = JobServiceRestTransport(host=server.host, url_scheme="http", credentials=AnonymousCredentials())
    with pytest.raises(RunError, match=r"Vertex AI said no: .*Quota exceeded for cpus"):
        vertex.submit(aiplatform_v1.JobServiceClient(transport=transport), PROJECT, job())
