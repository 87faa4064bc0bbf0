"""rayclusters/*.yaml against the types that read them: Vertex AI's own, and KubeRay's as far as its file uses them.

The shapes below follow KubeRay's Go types (ray/v1 RayJobSpec, RayClusterSpec) and Kubernetes' core/v1. A cluster may drop a field
that it does not know without a word; here it is an error.
"""

import json
import shlex
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from msgspec import Meta, Struct

from pigeonhole.cloud.project import Project, substitute
from pigeonhole.errors import ConfigError
from pigeonhole.options import read_options
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.training.vertex import CPU_MACHINES

ROOT = Path(__file__).parents[2]
PROJECT = Project("example-project", "europe-west4")
JOB = {
    "IMAGE": PROJECT.image("score", "0123456789ab"),
    "BUNDLE": "gs://bucket/bundle",
    "INPUT": "gs://bucket/mails/*.parquet",
    "OUTPUT": "gs://bucket/scored",
    "TEXT": "body",
    "ACTORS": "64",
    "ACCOUNT": "pigeonhole-score",
}
CLUSTER = {"IMAGE": JOB["IMAGE"], "ACCOUNT": PROJECT.account("score"), "WORKERS": "4"}

Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=0)]
Quantity = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i)?$")]
Name = Annotated[str, Meta(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Shape(Struct, forbid_unknown_fields=True, rename="camel"):
    pass


class HttpGet(Shape):
    path: Annotated[str, Meta(pattern="^/")]
    port: Port


class Probe(Shape):
    http_get: HttpGet
    period_seconds: Count = 10
    timeout_seconds: Count = 1
    failure_threshold: Count = 3
    initial_delay_seconds: Count = 0


class ContainerPort(Shape):
    name: Annotated[str, Meta(max_length=15)]
    container_port: Port


class Resources(Shape):
    requests: dict[Literal["cpu", "memory"], Quantity]
    limits: dict[Literal["cpu", "memory"], Quantity]


class Container(Shape):
    name: Name
    image: str
    resources: Resources
    readiness_probe: Probe
    liveness_probe: Probe
    ports: list[ContainerPort] = []


class PodSpec(Shape):
    containers: Annotated[list[Container], Meta(min_length=1)]
    service_account_name: Name
    node_selector: dict[str, str] = {}


class PodTemplate(Shape):
    spec: PodSpec


class HeadGroup(Shape):
    ray_start_params: dict[str, str]
    template: PodTemplate


class WorkerGroup(Shape):
    group_name: Name
    replicas: Count
    min_replicas: Count
    max_replicas: Count
    ray_start_params: dict[str, str]
    template: PodTemplate


class ClusterSpec(Shape):
    ray_version: str
    enable_in_tree_autoscaling: bool
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]


class JobSpec(Shape):
    entrypoint: str
    submission_mode: Literal["K8sJobMode", "HTTPMode"]
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: Count
    backoff_limit: Count
    ray_cluster_spec: ClusterSpec


class Metadata(Shape):
    generate_name: str
    labels: dict[str, str]


class RayJob(Shape):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


def text_of(name: str) -> str:
    return (ROOT / "rayclusters" / name).read_text(encoding="utf-8")


def ray_job(text: str) -> RayJob:
    return msgspec.convert(yaml.safe_load(substitute(text, JOB)), RayJob)


def test_the_job_is_a_ray_job_whose_command_the_project_takes() -> None:
    job = ray_job(text_of("kuberay.yaml"))
    name, *words = shlex.split(job.spec.entrypoint)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert name in scripts
    config = read_options(ScoreConfig, words)
    assert (config.ray_address, config.actors, config.input) == ("auto", 64, JOB["INPUT"])


def test_the_cluster_runs_the_locked_ray_and_no_actor_on_its_head() -> None:
    cluster = ray_job(text_of("kuberay.yaml")).spec.ray_cluster_spec
    locked = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    assert [cluster.ray_version] == [package["version"] for package in locked if package["name"] == "ray"]
    assert cluster.head_group_spec.ray_start_params["num-cpus"] == "0"
    [workers] = cluster.worker_group_specs
    [container] = workers.template.spec.containers
    assert workers.ray_start_params["num-cpus"] == container.resources.limits["cpu"] == container.resources.requests["cpu"]
    assert workers.min_replicas <= workers.replicas <= workers.max_replicas


def test_every_node_runs_the_score_image() -> None:
    cluster = ray_job(text_of("kuberay.yaml")).spec.ray_cluster_spec
    groups: list[HeadGroup | WorkerGroup] = [cluster.head_group_spec, *cluster.worker_group_specs]
    assert {container.image for group in groups for container in group.template.spec.containers} == {JOB["IMAGE"]}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("backoffLimit: 3", "backOffLimit: 3"),
        ("kind: RayJob", "kind: RayJobs"),
        ("maxReplicas: 100", "maxReplicas: many"),
        ("memory: 8Gi", "memory: 8GB"),
        ("port: 52365", "port: 523650"),
        ('{num-cpus: "8"}', "{num-cpus: 8}"),
        ("ray_address=auto", "ray_adress=auto"),
    ],
)
def test_a_planted_fault_in_the_job_is_caught(right: str, wrong: str) -> None:
    text = text_of("kuberay.yaml")
    assert right in text
    with pytest.raises((msgspec.ValidationError, ConfigError)):
        read_options(ScoreConfig, shlex.split(ray_job(text.replace(right, wrong)).spec.entrypoint)[1:])


def persistent_resource(text: str) -> Any:
    """Vertex AI's own type, strictly."""
    from google.cloud import aiplatform_v1

    content = json.dumps(yaml.safe_load(substitute(text, CLUSTER)))
    return aiplatform_v1.PersistentResource.from_json(content, ignore_unknown_fields=False)


def test_the_vertex_cluster_is_a_persistent_resource_with_the_score_image_in_every_pool() -> None:
    found = persistent_resource(text_of("vertex.yaml"))
    pools = {pool.id: pool for pool in found.resource_pools}
    ray = found.resource_runtime_spec.ray_spec
    assert ray.head_node_resource_pool_id in pools
    assert dict(ray.resource_pool_images) == dict.fromkeys(pools, JOB["IMAGE"])
    assert {pool.machine_spec.machine_type for pool in pools.values()} <= set(CPU_MACHINES)
    assert pools["scorers"].replica_count == 4


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("raySpec:", "raySpecs:"), ("replicaCount: 1\n", "replicaCount: one\n"), ("headNodeResourcePoolId", "headNodePoolId")],
)
def test_a_planted_fault_in_the_vertex_cluster_is_caught(right: str, wrong: str) -> None:
    from google.protobuf.json_format import ParseError

    text = text_of("vertex.yaml")
    assert right in text
    with pytest.raises(ParseError):
        persistent_resource(text.replace(right, wrong, 1))


@pytest.mark.parametrize("name", ["kuberay.yaml", "vertex.yaml"])
def test_no_cluster_file_names_a_project_a_region_or_a_tag_that_moves(name: str) -> None:
    text = text_of(name)
    assert not any(word in text for word in ("gs://", ":latest", "europe-", "us-central"))
