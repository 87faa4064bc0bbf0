import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import google.auth
import msgspec
import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError
from google.cloud import run_v2
from google.cloud.run_v2.services.services.transports import ServicesRestTransport
from google.oauth2.credentials import Credentials
from msgspec import Meta, Struct
from tests.cloud.conftest import Answer, StandIn

from pigeonhole.cloud import deploy
from pigeonhole.cloud.project import Project
from pigeonhole.cloud.refusals import refusals
from pigeonhole.command import call
from pigeonhole.errors import ConfigError, GateError, RunError

PROJECT = Project("some-project", "europe-west4")
SHA = "0123456789abcdef0123456789abcdef01234567"
FILE = Path(__file__).parents[2] / deploy.FOLDER / "serve.yaml"
NAME = "projects/some-project/locations/europe-west4/services/pigeonhole-serve"
LATEST = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST"
REVISION = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION"


def found_service(*, first: bool, host: str = "https://pigeonhole-serve.invalid", unready: str = "") -> Answer:
    """Cloud Run, as far as a deployment asks: a service with one revision, or none yet. `unready`: why a new one is none."""
    service = {
        "name": NAME,
        "uri": host,
        "latestReadyRevision": f"{NAME}/revisions/serve-00001",
        "latestCreatedRevision": f"{NAME}/revisions/serve-00002",
        "trafficStatuses": [
            {"type": LATEST, "percent": 100},
            {"type": LATEST, "tag": "candidate", "uri": f"{host}/candidate"},
        ],
    }
    reasons = iter([unready])

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "GET":
            return (404, {"error": {"code": 404, "message": "no", "status": "NOT_FOUND"}}) if first else (200, service)
        if reason := next(reasons, ""):
            return 200, {"name": f"{NAME}/operations/1", "done": True, "error": {"code": 9, "message": reason}}
        kind = {"@type": "type.googleapis.com/google.cloud.run.v2.Service", **service}
        return 200, {"name": f"{NAME}/operations/1", "done": True, "response": kind}

    return answer


def client(server: StandIn) -> run_v2.ServicesClient:
    return run_v2.ServicesClient(
        transport=ServicesRestTransport(host=server.host, url_scheme="http", credentials=AnonymousCredentials())
    )


def wanted() -> run_v2.Service:
    return deploy.read_service(FILE, PROJECT, SHA, "tickets", {})


def traffic_of(server: StandIn) -> list[list[tuple[str, int]]]:
    sent = [body["traffic"] for method, _, body in server.asked if method == "PATCH"]
    return [[(target.get("revision", "latest"), target.get("percent", 0)) for target in targets] for targets in sent]


def test_the_committed_service_is_one_of_cloud_run_and_names_nothing_by_itself() -> None:
    service = wanted()
    serve, collector = service.template.containers
    assert serve.image == PROJECT.image("serve", SHA)
    assert {variable.name: variable.value for variable in serve.env}["PIGEONHOLE_REGISTRY"] == PROJECT.registry
    assert list(collector.depends_on) == ["serve"]
    assert serve.resources.cpu_idle is False
    text = FILE.read_text()
    assert not [word for word in ("some-project", "europe", "gs://", ":latest") if word in text]


def test_the_variables_of_the_service_are_those_that_serve_reads() -> None:
    from pigeonhole.serving.settings import unknown_variables

    assert unknown_variables({variable.name: "" for variable in wanted().template.containers[0].env}) == []


def test_a_full_spool_and_two_versions_fit_into_the_memory_that_files_are_kept_in_too() -> None:
    """The process and the files of a version of MiniLM in fp32 as measured, reports/2026-11-28-cloud-files.md."""
    process_mb, version_mb = 230, 95
    main = wanted().template.containers[0]
    spool_mb = int({variable.name: variable.value for variable in main.env}["PIGEONHOLE_SPOOL_MB"])
    assert main.resources.limits["memory"] == "1Gi"
    assert process_mb + version_mb + 2 * version_mb + spool_mb < 1024


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("maxInstanceRequestConcurrency", "maxInstanceConcurrency", "maxInstanceConcurrency"),
        ("INGRESS_TRAFFIC_ALL", "INGRESS_TRAFFIC_EVERYBODY", "INGRESS_TRAFFIC_EVERYBODY"),
        ("failureThreshold: 60", "failureThreshold: often", "often"),
        ("path: /ready, port: 8080", "path: /ready, port: 8000", "a probe asks port 8000 of serve"),
        ("containerPort: 8080", "containerPort: 80", "a probe asks port 8080 of serve"),
        ("dependsOn: [serve]", "dependsOn: [server]", "collector depends on server"),
        ("name: run-monitoring\n      secret", "name: monitoring\n      secret", "collector mounts run-monitoring"),
        ("secret: ${METRICS_SECRET}", "secret: ${METRICS_SECRETS}", "no value for"),
        ("secret: ${METRICS_SECRET}", "secret: some-other-secret", "pigeonhole-serve may not read a secret some-other-secret"),
        (
            "          value: ${LOG}\n",
            "          valueSource: {secretKeyRef: {secret: a-third, version: latest}}\n",
            "pigeonhole-serve may not read a secret a-third",
        ),
        ("      ports:\n        - name: http1\n          containerPort: 8080\n", "", "0 containers have a port"),
    ],
)
def test_a_planted_fault_is_caught_before_anything_is_sent(right: str, wrong: str, told: str, tmp_path: Path) -> None:
    text = FILE.read_text()
    assert right in text
    file = tmp_path / "serve.yaml"
    file.write_text(text.replace(right, wrong, 1))
    with pytest.raises(ConfigError, match=told.replace("$", r"\$")):
        deploy.read_service(file, PROJECT, SHA, "tickets", {})


STARTED = [("latest", 0), ("serve-00001", 100)]
MOVED, BACK = [("latest", 100)], [("serve-00001", 100)]


@pytest.mark.parametrize(
    ("candidate", "service", "moves", "told"),
    [
        (200, 200, [STARTED, MOVED], ""),
        (500, 200, [STARTED, BACK], r"/candidate/predict answered 500; the traffic is where it was: 100 % at serve-00001"),
        (200, 500, [STARTED, MOVED, BACK], r"\d/predict answered 500; the traffic is where it was: 100 % at serve-00001"),
    ],
)
def test_traffic_follows_an_answer_and_goes_back_without_one(
    candidate: int, service: int, moves: Any, told: str, stand_in: Callable[[Answer], StandIn]
) -> None:
    """The question is really put, to a revision and a service that answer over HTTP as they are told."""

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        if path.endswith("/predict"):
            return (candidate if "/candidate/" in path else service), {"label": "billing"}
        return cloud_run(method, path, body)

    server = stand_in(answer)
    host = f"http://{server.host}"
    cloud_run = found_service(first=False, host=host)
    audiences: list[str] = []

    def check(url: str, audience: str) -> None:
        audiences.append(audience)
        deploy.ask(url, "token", *deploy.QUESTIONS["serve"])

    if told:
        with pytest.raises(GateError, match=told):
            deploy.deploy(client(server), PROJECT, "serve", wanted(), check)
    else:
        assert deploy.deploy(client(server), PROJECT, "serve", wanted(), check)["revision"] == "serve-00001"
    assert traffic_of(server) == moves
    paths = [path for method, path, _ in server.asked if method == "PATCH"]
    # Who only moves traffic makes no revision.
    assert ["updateMask=traffic" in path for path in paths] == [False, *(True for _ in moves[1:])]
    assert set(audiences) == {host}  # a token for a tag's address alone is refused


def test_a_revision_that_does_not_start_gets_no_traffic_and_the_reason_is_told(stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(found_service(first=False, unready="the container failed to listen on port 8080"))
    with pytest.raises(GateError, match=r"Cloud Run said no: .*failed to listen on port 8080.*; the traffic is where it was"):
        deploy.deploy(client(server), PROJECT, "serve", wanted(), lambda *_: None)
    assert traffic_of(server) == [STARTED, BACK]


def test_traffic_that_cannot_be_given_back_is_told_with_the_reason_and_the_way_back(
    stand_in: Callable[[Answer], StandIn],
) -> None:
    cloud_run = found_service(first=False)
    moved: list[str] = []

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        moved.extend([method] if method == "PATCH" else [])
        if len(moved) == 3:
            return 403, {"error": {"code": 403, "message": "run.services.update denied", "status": "x"}}
        return cloud_run(method, path, body)

    def check(url: str, _: str) -> None:
        if not url.endswith("/candidate"):
            raise RunError(f"{url}/predict answered 500")

    told = r"/predict answered 500; and the traffic was not given back \(.*denied.*\): rollback\.yaml gives it to serve-00001"
    with pytest.raises(RunError, match=told.replace("rollback", "cloudbuild/rollback")):
        deploy.deploy(client(stand_in(answer)), PROJECT, "serve", wanted(), check)


@pytest.mark.parametrize(
    ("first", "at", "moves", "told"),
    [
        (False, "candidate", [STARTED], "the traffic is where it was: 100 % at serve-00001; the new revision gets none"),
        (False, "service", [STARTED, MOVED], "was given it, .*; cloudbuild/rollback.yaml gives it to serve-00001"),
        (True, "candidate", [MOVED], "may have made the first revision, with all the traffic; deploy it again"),
    ],
)
def test_who_interrupts_a_question_is_told_where_the_traffic_is(
    first: bool, at: str, moves: Any, told: str, stand_in: Callable[[Answer], StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    server = stand_in(found_service(first=first))

    def check(url: str, _: str) -> None:
        if ("candidate" in url) is (at == "candidate"):
            raise KeyboardInterrupt  # as Python does it at Ctrl-C, wherever it waits

    assert call(lambda _: deploy.deploy(client(server), PROJECT, "serve", wanted(), check), []) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(f"interrupted: .*{told}", said.err.splitlines()[-1])
    assert traffic_of(server) == moves


def test_who_interrupts_while_the_traffic_is_given_back_is_told_why_it_was_and_the_way_back(
    stand_in: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = client(stand_in(found_service(first=False)))
    update, sent = services.update_service, list[Any]()

    def interrupted(request: Any) -> Any:
        sent.append(request)
        if len(sent) == 3:
            raise KeyboardInterrupt
        return update(request)

    def check(url: str, _: str) -> None:
        if not url.endswith("/candidate"):
            raise RunError(f"{url}/predict answered 500")

    monkeypatch.setattr(services, "update_service", interrupted)
    told = r"interrupted: .*/predict answered 500; and .*was given it.*cloudbuild/rollback\.yaml gives it to serve-00001"
    with pytest.raises(KeyboardInterrupt, match=told):
        deploy.deploy(services, PROJECT, "serve", wanted(), check)


def test_a_login_that_ends_during_a_deployment_leaves_a_word_on_the_traffic(
    stand_in: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = client(stand_in(found_service(first=False)))

    def ended(request: Any) -> Any:
        raise RefreshError("invalid_grant")

    def check(url: str, _: str) -> None:
        if not url.endswith("/candidate"):
            monkeypatch.setattr(services, "update_service", ended)
            raise RunError("no identity token")

    with pytest.raises(RunError, match=r"the traffic was not given back \(no account .*gcloud auth.*\): cloudbuild/rollback"):
        deploy.deploy(services, PROJECT, "serve", wanted(), check)


def test_a_tag_without_an_address_gets_no_traffic(stand_in: Callable[[Answer], StandIn]) -> None:
    cloud_run = found_service(first=False)

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        code, found = cloud_run(method, path, body)
        return code, json.loads(json.dumps(found).replace('"tag": "candidate"', '"tag": "other"'))

    server = stand_in(answer)
    with pytest.raises(GateError, match="no address of the tag candidate; the traffic is where it was"):
        deploy.deploy(client(server), PROJECT, "serve", wanted(), lambda *_: None)
    assert traffic_of(server) == [STARTED, BACK]


def test_a_first_deployment_creates_the_service_and_has_nothing_to_go_back_to(stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(found_service(first=True))
    deploy.deploy(client(server), PROJECT, "serve", wanted(), lambda *_: None)
    assert traffic_of(server) == [MOVED, MOVED]
    assert "allowMissing=true" in server.asked[1][1]

    def refuse(url: str, _: str) -> None:
        raise RunError(f"{url}/predict answered 500")

    with pytest.raises(GateError, match="answered 500; this was the first revision of pigeonhole-serve"):
        deploy.deploy(client(server), PROJECT, "serve", wanted(), refuse)


def test_a_no_of_the_service_and_a_missing_account_are_told_without_a_traceback(
    stand_in: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stand_in(lambda *_: (403, {"error": {"code": 403, "message": "run.services.get denied", "status": "x"}}))
    with pytest.raises(RunError, match=r"Cloud Run said no: .*run\.services\.get denied"), refusals("Cloud Run"):
        deploy.deploy(client(server), PROJECT, "serve", wanted(), lambda *_: None)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "nowhere.json")
    with pytest.raises(ConfigError, match="gcloud auth application-default login"), refusals("Cloud Run"):
        run_v2.ServicesClient()


def test_an_operation_that_does_not_end_in_time_is_told_and_moves_nothing(
    stand_in: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "WAIT_S", 0.5)
    cloud_run = found_service(first=False)

    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        if "/operations/" in path or (method == "PATCH" and "updateMask" not in path):
            return 200, {"name": f"{PROJECT.parent}/operations/1", "done": False}
        return cloud_run(method, path, body)

    server = stand_in(answer)
    with pytest.raises(GateError, match=r"Cloud Run gave no answer: .*; the traffic is where it was: 100 % at serve-00001"):
        deploy.deploy(client(server), PROJECT, "serve", wanted(), lambda *_: None)
    assert traffic_of(server) == [STARTED, BACK]


def test_a_login_that_has_ended_is_told_with_the_next_step(stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(lambda *_: (400, {"error": "invalid_grant", "error_description": "reauth related error"}))
    words = dict.fromkeys(("refresh_token", "client_id", "client_secret"), "x")
    ended = Credentials(None, token_uri=f"http://{server.host}/t", **words)
    services = run_v2.ServicesClient(transport=ServicesRestTransport(host=server.host, url_scheme="http", credentials=ended))
    with pytest.raises(ConfigError, match="gcloud auth application-default login"), refusals("Cloud Run"):
        services.get_service(name=NAME)


@pytest.mark.parametrize(
    ("status", "body"), [(500, {}), (200, {"label": ""}), (200, {}), (200, []), (200, None), (200, "billing")]
)
def test_anything_but_a_labelled_answer_fails_the_question(status: int, body: Any, stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(lambda *_: (status, body))
    with pytest.raises(RunError, match="/predict"):
        deploy.ask(f"http://{server.host}", "token", *deploy.QUESTIONS["serve"])


def test_a_labelled_answer_passes_and_the_token_is_sent_with_the_question(stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(lambda *_: (200, {"label": "billing"}))
    deploy.ask(f"http://{server.host}", "token", *deploy.QUESTIONS["serve"])
    assert server.asked == [("POST", "/predict", deploy.QUESTION)]
    assert [headers["authorization"] for headers in server.headers] == ["Bearer token"]


def test_a_token_is_the_deploying_accounts_and_who_may_not_have_it_is_told_the_line(
    stand_in: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google.auth, "default", lambda **_: (AnonymousCredentials(), PROJECT.id))
    server = stand_in(lambda *_: (200, {"token": "t"}))
    assert deploy.identity_token(PROJECT, "https://service", f"http://{server.host}") == "t"
    path = f"/v1/projects/-/serviceAccounts/{PROJECT.account('deploy')}:generateIdToken"
    assert server.asked == [("POST", path, {"audience": "https://service"})]
    refusing = stand_in(lambda *_: (403, {}))
    with pytest.raises(RunError, match=r"403; .*add-iam-policy-binding pigeonhole-deploy@.* --member=user:YOU --role=roles/iam"):
        deploy.identity_token(PROJECT, "https://service", f"http://{refusing.host}")
    with pytest.raises(RunError, match=r"no identity token of pigeonhole-deploy@.*: http://127\.0\.0\.1:9 gave no answer"):
        deploy.identity_token(PROJECT, "https://service", "http://127.0.0.1:9")  # so that `deploy` gives the traffic back


def test_the_command_puts_the_question_to_the_revision_and_to_the_service(
    stand_in: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        return (200, {"label": "billing"}) if path.endswith("/predict") else cloud_run(method, path, body)

    server = stand_in(answer)
    host = f"http://{server.host}"
    cloud_run, services = found_service(first=False, host=host), client(server)
    monkeypatch.setattr(run_v2, "ServicesClient", lambda: services)
    monkeypatch.setattr(deploy, "identity_token", lambda _, audience: f"for {audience}")
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    monkeypatch.chdir(FILE.parents[1])
    said = deploy.run([f"image={SHA}", "model=tickets"])
    assert said == {"service": host, "revision": "serve-00001", "tag": f"{host}/candidate"}
    asked = zip(server.asked, server.headers, strict=True)
    questions = [(path, headers["authorization"]) for (_, path, _), headers in asked if path.endswith("/predict")]
    assert questions == [("/candidate/predict", f"Bearer for {host}"), ("/predict", f"Bearer for {host}")]


def test_the_command_prints_the_service_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    monkeypatch.chdir(FILE.parents[1])
    shown = deploy.run([f"image={SHA}", "model=tickets", "--dry-run"])
    assert shown is not None
    assert deploy.parse_service(json.loads(json.dumps(shown)), "printed") == wanted()
    assert deploy.run(["--help"]) is None
    assert "usage:" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="tag: allowed are"):
        deploy.run(["tag=latest"])
    with pytest.raises(ConfigError, match=r"service=train: allowed is serve \| drift \| frontend"):
        deploy.run([f"image={SHA}", "service=train", "--dry-run"])


@pytest.mark.parametrize("name", ["2024", "on", "1e5", "tickets"])
def test_a_model_may_have_any_name_that_a_bundle_may_have(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some of which YAML reads as a number or a yes."""
    from pigeonhole.bundle import Name

    msgspec.convert(name, Name)
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    monkeypatch.chdir(FILE.parents[1])
    for service in deploy.ASKED:
        shown = deploy.run([f"image={SHA}", f"service={service}", f"model={name}", "--dry-run"])
        assert shown is not None
        assert {"name": "PIGEONHOLE_MODEL", "value": name} in shown["template"]["containers"][0]["env"]


@pytest.mark.parametrize("name", ["a: b", "*a", "a/b", "Tickets", "-tickets", "tickets\n", "t" * 101])
def test_a_name_that_no_model_has_is_refused_before_anything_is_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pigeonhole.bundle import Name

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name, Name)
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    monkeypatch.chdir(FILE.parents[1])
    with pytest.raises(ConfigError, match="expected the name of a model of the registry"):
        deploy.run([f"image={SHA}", f"model={name}", "--dry-run"])


def test_the_page_takes_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    monkeypatch.chdir(FILE.parents[1])
    with pytest.raises(ConfigError, match="service=frontend has no model of its own; leave model= out"):
        deploy.run([f"image={SHA}", "service=frontend", "model=tickets", "--dry-run"])
    assert deploy.run([f"image={SHA}", "service=frontend", "model=", "--dry-run"])  # as cloudbuild/deploy.yaml writes it


def test_another_folder_and_a_key_given_twice_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_PROJECT", PROJECT.id)
    monkeypatch.setenv("PIGEONHOLE_REGION", PROJECT.region)
    with pytest.raises(ConfigError, match="model=a model=b: a key is given twice"):
        deploy.run([f"image={SHA}", "model=a", "model=b"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"serve\.yaml: there is no such file here; run this in the folder of the repository"):
        deploy.run([f"image={SHA}", "model=tickets", "--dry-run"])


def test_what_the_sidecar_scrapes_is_where_the_service_listens() -> None:
    assert scraped((FILE.parent / "run_monitoring.yaml").read_text()) == wanted_scrapes()


class Shape(Struct, forbid_unknown_fields=True, rename="camel"):
    """RunMonitoring has no type that is published: these are its fields as the sidecar's documentation has them."""


class Scraped(Shape):
    port: int
    path: Annotated[str, Meta(pattern="^/")]
    interval: Annotated[str, Meta(pattern=r"^[0-9]+s$")]


class Spec(Shape):
    endpoints: list[Scraped]


class RunMonitoring(Shape):
    api_version: Literal["monitoring.googleapis.com/v1beta"]
    kind: Literal["RunMonitoring"]
    metadata: dict[Literal["name"], str]
    spec: Spec


def scraped(text: str) -> list[tuple[int, str]]:
    return [(found.port, found.path) for found in msgspec.yaml.decode(text, type=RunMonitoring).spec.endpoints]


def wanted_scrapes() -> list[tuple[int, str]]:
    (port,) = wanted().template.containers[0].ports
    return [(port.container_port, "/metrics")]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("endpoints:", "endpoint:"),
        ("kind: RunMonitoring", "kind: PodMonitoring"),
        ("port: 8080", "port: 8000"),
        ("path: /metrics", "path: /metric"),
        ("interval: 30s", "interval: often"),
    ],
)
def test_a_planted_fault_in_what_the_sidecar_scrapes_is_caught(right: str, wrong: str) -> None:
    text = (FILE.parent / "run_monitoring.yaml").read_text()
    assert right in text
    with contextlib.suppress(msgspec.ValidationError):
        assert scraped(text.replace(right, wrong)) != wanted_scrapes()


@pytest.mark.parametrize("name", sorted(deploy.QUESTIONS))
def test_every_service_is_private_sized_and_probed_at_a_path_that_it_has(name: str) -> None:
    service = deploy.read_service(
        FILE.parent / f"{name}.yaml", PROJECT, SHA, "tickets", {"serve": "https://s", "drift": "https://d"}
    )
    main = service.template.containers[0]
    assert main.image == PROJECT.image(name, SHA)
    assert service.template.service_account == PROJECT.account(name)
    assert not service.invoker_iam_disabled
    assert service.labels == {"app": "pigeonhole"}  # a bill and a list of revisions can be asked for it
    assert main.resources.limits.keys() == {"cpu", "memory"}
    path = deploy.QUESTIONS[name][0]
    assert main.liveness_probe.http_get.path in (path, "/health")
    assert not [
        value for value in (FILE.parent / f"{name}.yaml").read_text().split() if "europe" in value or value.endswith(":latest")
    ]


def test_serve_gets_no_request_before_its_model_is_loaded() -> None:
    """/health answers from the first moment, so that the process is not killed while it loads."""
    main = wanted().template.containers[0]
    assert (main.startup_probe.http_get.path, main.liveness_probe.http_get.path) == ("/ready", "/health")


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("serve", {"REGISTRY": PROJECT.registry, "MODEL": "tickets", "LOG": PROJECT.log}),
        (
            "drift",
            {
                "REGISTRY": PROJECT.registry,
                "MODEL": "tickets",
                "LOG": PROJECT.log,
                "REPORTS": f"gs://{PROJECT.bucket}/drift-reports",
            },
        ),
    ],
)
def test_what_a_service_writes_and_reads_is_in_the_bucket_and_not_in_an_instance_that_goes(
    name: str, places: dict[str, str]
) -> None:
    service = deploy.read_service(FILE.parent / f"{name}.yaml", PROJECT, SHA, "tickets", {})
    given = {variable.name.removeprefix("PIGEONHOLE_"): variable.value for variable in service.template.containers[0].env}
    assert given.items() >= places.items()


@pytest.mark.parametrize("name", sorted(deploy.QUESTIONS))
def test_a_collector_has_a_cpu_between_requests(name: str) -> None:
    """Google's page of the sidecar asks for it: throttled, it misses scrapes, and drift is asked once an hour."""
    service = deploy.read_service(FILE.parent / f"{name}.yaml", PROJECT, SHA, "tickets", {"serve": "x", "drift": "x"})
    containers = {container.name: container.resources.cpu_idle for container in service.template.containers}
    assert "collector" not in containers or set(containers.values()) == {False}


def test_the_variables_of_drift_are_those_that_it_reads() -> None:
    from pigeonhole.drift.settings import Settings
    from pigeonhole.environment import variables

    service = deploy.read_service(FILE.parent / "drift.yaml", PROJECT, SHA, "tickets", {})
    assert {given.name for given in service.template.containers[0].env} <= {found.name for _, found in variables(Settings)}


def test_the_page_is_given_the_addresses_of_the_services_and_waits_for_them(stand_in: Callable[[Answer], StandIn]) -> None:
    assert deploy.addresses(client(stand_in(found_service(first=False))), PROJECT) == {
        "serve": "https://pigeonhole-serve.invalid",
        "drift": "https://pigeonhole-serve.invalid",
    }
    with pytest.raises(ConfigError, match="uv run deploy service=serve` comes first"):
        deploy.addresses(client(stand_in(found_service(first=True))), PROJECT)


def test_a_service_says_no_before_the_platform_does_and_drift_and_the_page_stay_on_one_instance() -> None:
    """A run of drift may take minutes and is one at a time; a visitor's page is on the instance that has its connection."""
    from pigeonhole.serving.settings import Settings

    serve, drift, frontend = (
        deploy.read_service(
            FILE.parent / f"{name}.yaml", PROJECT, SHA, "tickets", {"serve": "https://s", "drift": "https://d"}
        ).template
        for name in ("serve", "drift", "frontend")
    )
    assert serve.timeout.total_seconds() > Settings().deadline_s
    assert frontend.timeout.total_seconds() == 3600  # the longest that Cloud Run keeps a page's connection
    assert drift.scaling.max_instance_count == 1
    assert drift.timeout.total_seconds() == 300
    assert frontend.session_affinity


def test_the_page_asks_each_service_at_its_own_address() -> None:
    service = deploy.read_service(FILE.parent / "frontend.yaml", PROJECT, SHA, "", {"serve": "https://s", "drift": "https://d"})
    told = {variable.name: variable.value for variable in service.template.containers[0].env}
    assert told == {"PIGEONHOLE_API_URL": "https://s", "PIGEONHOLE_DRIFT_URL": "https://d"}


def test_a_service_without_labels_is_asked_for_its_health(stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(lambda *_: (200, {"status": "ok"}))
    deploy.ask(f"http://{server.host}", "token", *deploy.QUESTIONS["drift"])
    assert server.asked == [("GET", "/health", None)]
