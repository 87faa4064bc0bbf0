import contextlib
import json
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.conftest import Answer, StandIn

from pigeonhole.cloud import quota
from pigeonhole.cloud.project import Project
from pigeonhole.cloud.resources import Line, Site
from pigeonhole.errors import RunError

SITE = Site(Project("some-project", "europe-west4"), "1")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def info(value: str, *regions: str) -> dict[str, Any]:
    return {"quotaId": "Q", "dimensionsInfos": [{"applicableLocations": list(regions), "details": {"value": value}}]}


@contextlib.contextmanager
def answering_once(answer: bytes) -> Iterator[str]:
    """HOST:PORT of a server that says these bytes to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def say() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=say)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("infos", "limit"),
    [
        ([], 0),
        ([info("8", "europe-west4")], 8),
        ([info("8", "us-east1")], 0),
        ([info("-1", "europe-west4")], 2**31),
        ([{"quotaId": "Q", "dimensionsInfos": [{"details": {"value": "3"}}]}], 3),
    ],
)
def test_the_limit_of_a_region_is_read(infos: list[dict[str, Any]], limit: int) -> None:
    assert quota.allowed(infos, "europe-west4") == limit


@pytest.mark.parametrize("machine", quota.NEEDED)
def test_a_project_without_quota_is_told_of_each_with_the_line_that_asks_for_it(machine: str) -> None:
    found = quota.missing(SITE, lambda _: "[]", machine)
    assert [thing["what"].split()[3] for thing in found] == list(quota.NEEDED[machine])
    assert all(thing["line"].startswith("gcloud beta quotas preferences create") for thing in found)


def test_the_line_asks_for_as_much_as_is_needed_where_it_is_needed() -> None:
    asked: list[Line] = []

    def ask(line: Line) -> str:
        asked.append(line)
        return json.dumps([info("7", "europe-west4")])

    [missing] = quota.missing(SITE, ask, "cpu")
    service = "--service=aiplatform.googleapis.com --project=some-project"
    metric = "aiplatform.googleapis.com/custom_model_training_cpus"
    assert [shlex.join(line) for line in asked] == [
        f"gcloud beta quotas info list {service} --filter=metric={metric} --format=json"
    ]
    assert missing["line"] == (
        f"gcloud beta quotas preferences create {service} --quota-id=Q --preferred-value=8 --dimensions=region=europe-west4"
    )


def test_spot_machines_have_a_quota_of_their_own() -> None:
    assert {machine: {"preemptible" in name for name in needed} for machine, needed in quota.NEEDED.items()} == {
        "cpu": {False},
        "gpu": {False},
        "spot": {True},
    }


@pytest.mark.parametrize(("limit", "lacks"), [("8", []), ("7", ["quota of 8 custom_model_training_cpus in europe-west4"])])
def test_a_quota_that_is_just_enough_is_enough(limit: str, lacks: list[str]) -> None:
    found = quota.missing(SITE, lambda _: json.dumps([info(limit, "europe-west4")]), "cpu")
    assert [thing["what"] for thing in found] == lacks


def test_every_image_that_is_built_is_looked_for() -> None:
    folder = Path(__file__).parents[2] / "dockerfiles"
    assert set(quota.IMAGES) == {path.stem for path in folder.glob("*.dockerfile")} - {"serve_baked"}


@pytest.mark.parametrize(
    ("architecture", "told"), [("amd64", []), ("arm64", ["is for linux/arm64, not for linux/amd64"]), ("", ["is not there"])]
)
def test_an_image_of_another_platform_is_found_before_it_is_deployed(
    architecture: str, told: list[str], stand_in: Callable[[Answer], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        assert path.startswith("/v2/some-project/pigeonhole/serve/")
        if path.endswith(f"manifests/{COMMIT}") and architecture:
            return 200, {"config": {"digest": "sha256:1"}}
        return (200, {"os": "linux", "architecture": architecture}) if architecture else (404, {})

    server = stand_in(answer)
    monkeypatch.setattr(quota, "IMAGES", ("serve",))
    get = quota.fetch("token", "http")
    found = quota.images(SITE, COMMIT, lambda image, part: get(f"{server.host}/{image.partition('/')[2]}", part))
    assert [thing["what"].partition(COMMIT + " ")[2] for thing in found] == told
    line = (
        "gcloud builds submit --config=cloudbuild/images.yaml --region=europe-west4 --project=some-project "
        f"--substitutions=_REGION=europe-west4,COMMIT_SHA={COMMIT} --gcs-source-staging-dir=gs://some-project-pigeonhole/source"
    )
    assert [thing["line"] for thing in found] == [line] * len(told)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer token"}
    taken = {kind.strip() for headers in server.headers for kind in headers["accept"].split(",")}
    assert {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.v2+json"} <= taken


INDEX = [{"platform": {"os": system, "architecture": chip}} for system, chip in (("linux", "arm64"), ("unknown", "unknown"))]
OURS = {"platform": {"os": "linux", "architecture": "amd64"}}


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (INDEX, ["is for linux/arm64, not for linux/amd64"]),
        ([*INDEX, OURS], []),
    ],
)
def test_an_index_of_images_is_read_by_what_it_lists(listed: list[Any], told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "IMAGES", ("serve",))
    found = quota.images(SITE, COMMIT, lambda *_: {"manifests": listed})
    assert [thing["what"].partition(COMMIT + " ")[2] for thing in found] == told


def test_a_registry_that_says_no_is_told(stand_in: Callable[[Answer], StandIn]) -> None:
    server = stand_in(lambda *_: (403, {}))
    with pytest.raises(RunError, match=r"answered 403; does this account have roles/artifactregistry.reader"):
        quota.fetch("token", "http")(f"{server.host}/p/r/serve:{COMMIT}", f"manifests/{COMMIT}")


def test_the_token_does_not_follow_to_another_host(stand_in: Callable[[Answer], StandIn]) -> None:
    elsewhere = stand_in(lambda *_: (200, {"config": {}}))
    led = f"HTTP/1.0 307 Temporary Redirect\r\nLocation: http://{elsewhere.host}/blob\r\n\r\n".encode()
    with answering_once(led) as host:
        assert quota.fetch("token", "http")(f"{host}/p/r/serve:{COMMIT}", f"manifests/{COMMIT}") == {"config": {}}
    assert [headers["authorization"] for headers in elsewhere.headers] == [None]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "answered something else than JSON"),
        (b"SSH-2.0-server\r\n", "cannot be reached: SSH-2.0-server"),
    ],
)
def test_what_answers_and_is_no_registry_is_told(answer: bytes, told: str) -> None:
    with answering_once(answer) as host, pytest.raises(RunError, match=told):
        quota.fetch("token", "http")(f"{host}/p/r/serve:{COMMIT}", f"manifests/{COMMIT}")


def test_a_registry_that_is_not_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RunError, match=r"cannot be reached: .*refused"):
        quota.fetch("token", "http")(f"127.0.0.1:{port}/p/r/serve:{COMMIT}", f"manifests/{COMMIT}")
