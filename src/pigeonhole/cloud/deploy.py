"""`uv run deploy image=COMMIT [service=NAME] [model=NAME]`: cloudrun/NAME.yaml becomes a revision that answers, or nothing moves.

A new revision gets no traffic and the tag `candidate`; a question is put to the tag's address; only its answer moves the traffic.
With the traffic the service itself is asked once more; where it gives no answer, the traffic goes back.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pigeonhole.cloud.project import METRICS_SECRET, Project, read_project, read_yaml
from pigeonhole.cloud.refusals import refusals
from pigeonhole.cloud.resources import SECRETS, TOKEN_CREATOR
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, GateError, RunError

if TYPE_CHECKING:
    from google.cloud import run_v2

FOLDER = Path("cloudrun")
TAG = "candidate"
QUESTION = {"text": "I was charged twice for the same order"}
# What a new revision is asked: a path and, for a POST, a body; None: any answer with 200 will do.
QUESTIONS: dict[str, tuple[str, dict[str, str] | None]] = {
    "serve": ("/predict", QUESTION),
    "drift": ("/health", None),
    "frontend": ("/_stcore/health", None),
}
ASKED = ("serve", "drift")  # by the page
MODEL = r"[a-z0-9][a-z0-9._-]{0,99}"  # as a bundle's manifest may name its model
WAIT_S = 600

HELP = """usage: [PIGEONHOLE_PROJECT=… PIGEONHOLE_REGION=…] uv run deploy image=COMMIT [service=NAME] [model=NAME] [--dry-run]

Deploy an image of a commit to Cloud Run (serve, or service=drift, frontend): without traffic, then a question, then the traffic.
A revision that does not start or does not answer gets no traffic, or loses it again (exit 4). --dry-run prints the service and
sends nothing.
"""


@with_help(HELP)
def run(arguments: list[str]) -> dict[str, Any]:
    dry = "--dry-run" in arguments
    options = dict(argument.partition("=")[::2] for argument in arguments if argument != "--dry-run")
    if unknown := sorted(options.keys() - {"image", "model", "service"}):
        raise ConfigError(f"{unknown[0]}: allowed are image=COMMIT, service=NAME, model=NAME and --dry-run")
    if len(options) < len(arguments) - arguments.count("--dry-run"):
        raise ConfigError(f"{' '.join(arguments)}: a key is given twice")
    name = options.get("service", "serve")
    if name not in QUESTIONS:
        raise ConfigError(f"service={name}: allowed is {' | '.join(QUESTIONS)}")
    image, model = options.get("image", ""), options.get("model", "")
    if model and name not in ASKED:
        raise ConfigError(f"model={model}: service={name} has no model of its own; leave model= out")
    if model and not re.fullmatch(MODEL, model):
        raise ConfigError(f"model={model}: expected the name of a model of the registry, up to 100 of a-z, 0-9, '.', '_' and '-'")
    project = read_project(os.environ)
    path = FOLDER / f"{name}.yaml"
    if dry:
        return to_dict(read_service(path, project, image, model, {name: f"https://{name}.invalid" for name in ASKED}))
    from google.cloud import run_v2

    def check(url: str, audience: str) -> None:
        ask(url, identity_token(project, audience), *QUESTIONS[name])

    with refusals("Cloud Run"):
        services = run_v2.ServicesClient()
        service = read_service(path, project, image, model, addresses(services, project) if name == "frontend" else {})
        return deploy(services, project, name, service, check)


def addresses(services: "run_v2.ServicesClient", project: Project) -> dict[str, str]:
    """Where the services that the page asks are. Raises ConfigError for one that is not there yet."""
    from google.api_core.exceptions import NotFound

    found = {}
    for name in ASKED:
        try:
            found[name] = services.get_service(name=f"{project.parent}/services/pigeonhole-{name}").uri
        except NotFound as error:
            raise ConfigError(f"pigeonhole-{name} is not there yet; `uv run deploy service={name}` comes first") from error
    return found


def read_service(path: Path, project: Project, image: str, model: str, urls: Mapping[str, str]) -> "run_v2.Service":
    """The file with its substitutions, as the vendor's own type. Raises ConfigError for a key or a value that it has not."""
    name = path.stem
    values = {
        "ACCOUNT": project.account(name),
        "IMAGE": project.image(name, image),
        "LOG": project.log,
        "METRICS_SECRET": METRICS_SECRET,
        "MODEL": model,
        "REGISTRY": project.registry,
        "REPORTS": f"gs://{project.bucket}/drift-reports",
        "API_URL": urls.get("serve", ""),
        "DRIFT_URL": urls.get("drift", ""),
    }
    service = parse_service(read_yaml(path, values), str(path))
    _check_secrets(service, name, str(path))
    return service


def parse_service(content: Any, place: str) -> "run_v2.Service":
    """Strictly: what the type does not know is an error, and so is a probe, a mount or a dependency that leads nowhere."""
    from google.cloud import run_v2
    from google.protobuf.json_format import ParseError

    try:
        service: run_v2.Service = run_v2.Service.from_json(json.dumps(content), ignore_unknown_fields=False)
    except ParseError as error:
        raise ConfigError(f"{place}: {error}") from error
    _check_containers(service, place)
    return service


def _check_containers(service: "run_v2.Service", place: str) -> None:
    names = {container.name for container in service.template.containers}
    volumes = {volume.name for volume in service.template.volumes}
    listening = [container for container in service.template.containers if container.ports]
    if len(listening) != 1:
        raise ConfigError(f"{place}: {len(listening)} containers have a port; exactly one takes requests")
    for container in service.template.containers:
        for needed in container.depends_on:
            if needed not in names:
                raise ConfigError(f"{place}: {container.name} depends on {needed}; containers are {', '.join(sorted(names))}")
        for mount in container.volume_mounts:
            if mount.name not in volumes:
                raise ConfigError(
                    f"{place}: {container.name} mounts {mount.name}; volumes are {', '.join(sorted(volumes)) or 'none'}"
                )
        ports = {port.container_port for port in container.ports}
        for probe in (container.startup_probe, container.liveness_probe):
            if probe.http_get.port and probe.http_get.port not in ports:
                raise ConfigError(
                    f"{place}: a probe asks port {probe.http_get.port} of {container.name}, which listens at {ports or 'none'}"
                )


def _check_secrets(service: "run_v2.Service", role: str, place: str) -> None:
    """A secret that is not there, or not for this account, is a revision that never starts."""
    named = {volume.secret.secret for volume in service.template.volumes}
    named |= {given.value_source.secret_key_ref.secret for container in service.template.containers for given in container.env}
    allowed = {secret for secret, roles in SECRETS.items() if role in roles}
    if missing := sorted(named - allowed - {""}):
        raise ConfigError(
            f"{place}: pigeonhole-{role} may not read a secret {missing[0]}; cloud.setup gives it {', '.join(allowed) or 'none'}"
        )


def deploy(
    services: "run_v2.ServicesClient",
    project: Project,
    name: str,
    service: "run_v2.Service",
    check: Callable[[str, str], None],
) -> dict[str, Any]:
    """`check` is given an address and the audience of a token for it: the service's own, for a tag's address too.

    Raises GateError, the traffic being where it was, for a revision that does not start and where `check` raises RunError.
    """
    from google.cloud import run_v2

    service.name = f"{project.parent}/services/pigeonhole-{name}"
    latest = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST
    before = _traffic_now(services, service.name)
    service.traffic = [run_v2.TrafficTarget(type_=latest, percent=0 if before else 100, tag=TAG), *before]
    say(f"deploying {service.template.containers[0].image} {'without traffic' if before else 'for the first time'}")
    moved = False
    try:
        request = run_v2.UpdateServiceRequest(service=service, allow_missing=True)
        with refusals("Cloud Run"):
            made = services.update_service(request).result(timeout=WAIT_S)
        url = next((status.uri for status in made.traffic_statuses if status.tag == TAG), "")
        if not url:
            raise RunError(f"Cloud Run tells no address of the tag {TAG}")
        check(url, made.uri)
        moved = True
        _move(services, service, [run_v2.TrafficTarget(type_=latest, percent=100, tag=TAG)])
        check(made.uri, made.uri)
    except RunError as error:
        if not before:
            raise GateError(f"{error}; this was the first revision of pigeonhole-{name}, so no other one can answer") from error
        try:
            _move(services, service, before)
        except (RunError, ConfigError) as no:
            raise RunError(f"{error}; and the traffic was not given back ({no}): {_way_back(before)}") from error
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(f"interrupted: {error}; and {_stands(before, moved)}") from interrupt
        raise GateError(f"{error}; the traffic is where it was: {_told(before)}") from error
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"interrupted: {_stands(before, moved)}") from interrupt
    return {"service": made.uri, "revision": made.latest_ready_revision.rsplit("/", 1)[-1], "tag": url}


def _stands(before: list["run_v2.TrafficTarget"], moved: bool) -> str:
    """What a deployment that ended early has done: Cloud Run goes on with what it was asked for."""
    if not before:
        return "Cloud Run may have made the first revision, with all the traffic; deploy it again"
    if not moved:
        return f"the traffic is where it was: {_told(before)}; the new revision gets none"
    return (
        f"the new revision answered without traffic and was given it, and no answer with it was waited for; {_way_back(before)}"
    )


def _way_back(before: list["run_v2.TrafficTarget"]) -> str:
    return f"cloudbuild/rollback.yaml gives it to {before[0].revision}"


def _told(traffic: list["run_v2.TrafficTarget"]) -> str:
    return ", ".join(f"{target.percent} % at {target.revision}" for target in traffic)


def _traffic_now(services: "run_v2.ServicesClient", name: str) -> list["run_v2.TrafficTarget"]:
    """Who gets the requests at this moment, by name; empty for a service that is not there."""
    from google.api_core.exceptions import NotFound
    from google.cloud import run_v2

    try:
        found = services.get_service(name=name)
    except NotFound:
        return []
    named = run_v2.TrafficTargetAllocationType.TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION
    ready = found.latest_ready_revision.rsplit("/", 1)[-1]
    return [
        run_v2.TrafficTarget(type_=named, revision=status.revision or ready, percent=status.percent)
        for status in found.traffic_statuses
        if status.percent
    ]


def _move(services: "run_v2.ServicesClient", service: "run_v2.Service", traffic: list["run_v2.TrafficTarget"]) -> None:
    from google.cloud import run_v2

    changed = run_v2.Service(name=service.name, template=service.template, ingress=service.ingress, traffic=traffic)
    request = run_v2.UpdateServiceRequest(service=changed, update_mask={"paths": ["traffic"]})
    with refusals("Cloud Run"):
        services.update_service(request).result(timeout=WAIT_S)


def ask(url: str, token: str, path: str, body: Mapping[str, str] | None) -> None:
    """One question. Raises RunError for anything but a 200, and for an answer to a text that is no label."""
    import requests

    headers = {"authorization": f"Bearer {token}"}
    try:
        answer = requests.request("GET" if body is None else "POST", url + path, json=body, headers=headers, timeout=60)
        if answer.status_code != 200:
            raise RunError(f"{url}{path} answered {answer.status_code}")
        said = {} if body is None else answer.json()
    except requests.RequestException as error:
        raise RunError(f"{url}{path} gave no answer: {error}") from error
    if body is not None and not (isinstance(said, dict) and said.get("label")):
        raise RunError(f"{url}{path} answered 200, but no label")


def identity_token(project: Project, audience: str, host: str = "https://iamcredentials.googleapis.com") -> str:
    """A token of the deploying account, for a service that is private. Raises RunError with the line that allows it."""
    import google.auth
    import requests
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import AuthorizedSession

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    account = project.account("deploy")
    url = f"{host}/v1/projects/-/serviceAccounts/{account}:generateIdToken"
    try:
        answer = AuthorizedSession(credentials).post(url, json={"audience": audience}, timeout=30)
    except (requests.RequestException, GoogleAuthError) as error:
        raise RunError(f"no identity token of {account}: {host} gave no answer: {error}") from error
    if answer.status_code != 200:
        raise RunError(
            f"no identity token of {account}: {answer.status_code}; whoever deploys has to be allowed to ask for one: gcloud iam "
            f"service-accounts add-iam-policy-binding {account} --member=user:YOU --role={TOKEN_CREATOR} --project={project.id}"
        )
    token: str = answer.json()["token"]
    return token


def to_dict(service: "run_v2.Service") -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(type(service).pb(service))
    return found


main = command(run)

if __name__ == "__main__":
    main()
