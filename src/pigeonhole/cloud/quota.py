"""What a project has of a machine, and whether an image is for it: the two things that otherwise fail minutes after the start."""

import http.client
import json
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pigeonhole.cloud.resources import Line, Site
from pigeonhole.errors import RunError

PLATFORM = ("linux", "amd64")
IMAGES = ("serve", "drift", "frontend", "train", "score")
# What a job of `uv run vertex` takes at the least, by the quota of Vertex AI's custom training.
NEEDED = {
    "cpu": {"custom_model_training_cpus": 8},
    "gpu": {"custom_model_training_cpus": 8, "custom_model_training_nvidia_t4_gpus": 1},
    "spot": {"custom_model_training_preemptible_cpus": 8, "custom_model_training_preemptible_nvidia_t4_gpus": 1},
}
Missing = dict[str, str]
Get = Callable[[str, str], dict[str, Any]]


def missing(site: Site, ask: Callable[[Line], str], machine: str) -> list[Missing]:
    """`machine` is one of NEEDED."""
    found = []
    for name, needed in NEEDED[machine].items():
        metric = f"aiplatform.googleapis.com/{name}"
        said = ask(
            (
                *("gcloud", "beta", "quotas", "info", "list", "--service=aiplatform.googleapis.com"),
                *(f"--project={site.project.id}", f"--filter=metric={metric}", "--format=json"),
            )
        )
        infos = json.loads(said or "[]")
        if allowed(infos, site.project.region) < needed:
            identity = infos[0]["quotaId"] if infos else name
            line = ["gcloud", "beta", "quotas", "preferences", "create", "--service=aiplatform.googleapis.com"]
            line += [f"--project={site.project.id}", f"--quota-id={identity}", f"--preferred-value={needed}"]
            line += [f"--dimensions=region={site.project.region}"]
            found.append({"what": f"quota of {needed} {name} in {site.project.region}", "line": shlex.join(line)})
    return found


def allowed(infos: Sequence[Mapping[str, Any]], region: str) -> int:
    """The limit in a region, 0 where none is told; -1 of the API means without limit."""
    for info in infos:
        for dimension in info.get("dimensionsInfos", []):
            if region in dimension.get("applicableLocations", [region]):
                value = int(dimension.get("details", {}).get("value", 0))
                return 2**31 if value < 0 else value
    return 0


def images(site: Site, commit: str, get: Get) -> list[Missing]:
    """Images of a commit that are not there, or are for another platform than Cloud Run and Vertex AI run."""
    found = []
    for name in IMAGES:
        image = site.project.image(name, commit)
        platforms = _platforms(image, commit, get)
        if PLATFORM not in platforms:
            those = ", ".join(map("/".join, platforms))
            what = f"is for {those}, not for {'/'.join(PLATFORM)}" if platforms else "is not there"
            line = ["gcloud", "builds", "submit", "--config=cloudbuild/images.yaml", f"--region={site.project.region}"]
            line += [f"--project={site.project.id}", f"--substitutions=_REGION={site.project.region},COMMIT_SHA={commit}"]
            line += [f"--gcs-source-staging-dir=gs://{site.project.bucket}/source"]
            found.append({"what": f"image {image} {what}", "line": shlex.join(line)})
    return found


def _platforms(image: str, commit: str, get: Get) -> list[tuple[str, str]]:
    """Of an image, or of each that an index lists (where a build's attestation, which runs nowhere, has no platform)."""
    manifest = get(image, f"manifests/{commit}")
    if "manifests" in manifest:
        told = [each.get("platform", {}) for each in manifest["manifests"]]
    else:
        told = [get(image, f"blobs/{manifest['config']['digest']}")] if "config" in manifest else []
    platforms = [(str(each.get("os", "")), str(each.get("architecture", ""))) for each in told]
    return [platform for platform in platforms if platform != ("unknown", "unknown")]


def fetch(token: str, scheme: str = "https") -> Get:
    """Read the registry's own records; {} for what is not there. Raises RunError."""

    def get(image: str, part: str) -> dict[str, Any]:
        host, _, path = image.rpartition(":")[0].partition("/")
        url = f"{scheme}://{host}/v2/{path}/{part}"
        oci, docker = "application/vnd.oci.image", "application/vnd.docker.distribution.manifest"
        accept = f"{oci}.manifest.v1+json, {oci}.index.v1+json, {docker}.v2+json, {docker}.list.v2+json"
        request = urllib.request.Request(url, headers={"accept": accept})  # noqa: S310
        request.add_unredirected_header("authorization", f"Bearer {token}")  # for this host, not for where it may lead
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  the project's own registry
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return {}
            raise RunError(f"{url} answered {error.code}; does this account have roles/artifactregistry.reader?") from error
        except (OSError, http.client.HTTPException) as error:
            raise RunError(f"{url} cannot be reached: {error}") from error
        except ValueError as error:  # a proxy's page
            raise RunError(f"{url} answered something else than JSON; is a proxy between?") from error

    return get
