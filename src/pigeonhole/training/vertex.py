"""`uv run vertex image=COMMIT machine=gpu experiment=fast …`: one training run, or a sweep of them, as a job of Vertex AI.

One template; `machine` and `workers` lay their differences over it. The keys of `train` are composed and checked here, before
anything is sent.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pigeonhole import storage
from pigeonhole.cloud.project import WANDB_SECRET, Project, read_project
from pigeonhole.cloud.refusals import refusals
from pigeonhole.command import command, say, with_help
from pigeonhole.configuration import compose, help_text
from pigeonhole.errors import ConfigError
from pigeonhole.evaluation.slices import read_patterns
from pigeonhole.options import key_lines, read_options, setting, split_own, to_flat
from pigeonhole.training.config import FILES, TrainConfig
from pigeonhole.training.space import check_training, read_space, to_vertex
from pigeonhole.training.worker import SECRET

if TYPE_CHECKING:
    from google.cloud import aiplatform_v1

Job = dict[str, Any]

# Vertex's type takes any string for a machine, and a typing error comes back minutes later: these are the ones to choose from.
CPU_MACHINES = ("n1-standard-4", "n1-standard-8", "n1-standard-16", "e2-standard-4", "e2-standard-8", "c2-standard-8")
GPU_MACHINES = {"n1-standard-4": "NVIDIA_TESLA_T4", "n1-standard-8": "NVIDIA_TESLA_T4", "g2-standard-4": "NVIDIA_L4"}
USAGE = """usage: vertex image=COMMIT [key=value …] [KEY OF train=value …] [--dry-run]

A training run, or a sweep of them, as a job of Vertex AI. --dry-run prints the job and sends nothing.

uv run vertex image=COMMIT machine=gpu experiment=banking77
"""


@dataclass(frozen=True)
class VertexConfig:
    image: str = setting("", "commit that the train image was built from")
    machine: str = setting("cpu", "what to run on; sweep: several runs on cpu", choices=["cpu", "gpu", "spot", "sweep"])
    machine_type: str | None = setting(None, "another machine of the list", choices=sorted({*CPU_MACHINES, *GPU_MACHINES}))
    workers: int = setting(1, "machines that train together, by torchrun; a sweep's runs have one each", ge=1, le=16)
    hours: int = setting(6, "the job is ended after so many hours", ge=1, le=168)
    sweep: str = setting("learning_rates", "what a sweep varies: a file of configs/sweep/, or a .yaml file")
    trials: int | None = setting(None, "runs of a sweep; unset: as its file says", ge=1, le=100)
    parallel: int = setting(3, "runs of a sweep at one time", ge=1, le=10)


@with_help(lambda: "\n".join([USAGE, *key_lines(VertexConfig), "", help_text(TrainConfig, "train")]))
def run(arguments: list[str]) -> Job:
    own, training = split_own(VertexConfig, [argument for argument in arguments if argument != "--dry-run"])
    config = read_options(VertexConfig, own)
    compose(TrainConfig, "train", training)
    project = read_project(os.environ)
    job = make_job(project, config, training)
    if "--dry-run" in arguments:
        return job
    return {"job": submit(open_client(project), project, job)}


def make_job(project: Project, config: VertexConfig, training: Sequence[str]) -> Job:
    """The body of a CustomJob, or of a HyperparameterTuningJob for a sweep. Raises ConfigError."""
    chosen = compose(TrainConfig, "train", training)
    for key, value in to_flat(chosen).items():
        if key in FILES and value and _is_here(str(value)):
            raise ConfigError(f"{key}={value}: the job does not see this machine's files; copy it to gs://{project.bucket}")
        if key in FILES and value and str(value).startswith("package://pigeonhole/") and not storage.exists(str(value)):
            raise ConfigError(f"{key}={value}: there is no such file")
    read_patterns(chosen.data.slices)
    pretrained = chosen.model.pretrained
    if ("://" in pretrained and not pretrained.startswith("package://")) or Path(pretrained).is_dir():
        raise ConfigError(
            f"model.pretrained={pretrained}: the job sees neither this machine's folders nor a bucket's; give a hub id OWNER/NAME"
        )
    if chosen.out is not None and storage.local_path(chosen.out) is None:
        raise ConfigError(
            f"out={chosen.out}: a run works in a folder of its own machine; leave it out, the bundle goes to the registry"
        )
    if any(argument.startswith("registry=") for argument in training):
        raise ConfigError(f"registry: a job publishes to {project.registry}")
    container = {
        "command": ["vertex-worker"],
        "args": [*training, f"registry={project.registry}"],
        "env": [{"name": SECRET, "value": f"{project.secret(WANDB_SECRET)}/versions/latest"}],
    }
    if config.workers > 1 and config.machine == "sweep":
        raise ConfigError(f"workers={config.workers}: a sweep's runs have one machine each; expected workers=1")
    if config.machine == "sweep":
        check_training(read_space(config.sweep, config.trials), training)
    machines = config.machine if config.workers == 1 else f"{config.workers}x{config.machine}"
    return job_around(project, config, f"pigeonhole-{chosen.name or 'train'}-{config.image[:7]}-{machines}", container)


def _is_here(url: str) -> bool:
    return not url.startswith("package://") and storage.local_path(url) is not None


def job_around(project: Project, config: VertexConfig, name: str, container: Job) -> Job:
    """The job that runs a container of the train image: its machine, its account, its end."""
    spec = {
        "workerPoolSpecs": _pools(project, config, container),
        "scheduling": _scheduling(config),
        "serviceAccount": project.account("train"),
        "baseOutputDirectory": {"outputUriPrefix": f"gs://{project.bucket}/jobs/{name}"},
    }
    job: Job = {"displayName": name, "labels": {"app": "pigeonhole", "machine": config.machine}}
    if config.machine == "sweep":
        space = read_space(config.sweep, config.trials)
        parallel = min(config.parallel, space.trials)
        job |= {"studySpec": to_vertex(space), "maxTrialCount": space.trials, "parallelTrialCount": parallel}
        return {**job, "trialJobSpec": spec}
    return {**job, "jobSpec": spec}


def _pools(project: Project, config: VertexConfig, container: Job) -> list[Job]:
    """Vertex wants the first machine in a pool of its own; the others, all alike, are the second one."""
    first = {
        "replicaCount": 1,
        "machineSpec": _machine(config),
        "diskSpec": {"bootDiskType": "pd-ssd", "bootDiskSizeGb": 100},
        "containerSpec": {"imageUri": project.image("train", config.image), **container},
    }
    return [first] if config.workers == 1 else [first, {**first, "replicaCount": config.workers - 1}]


def _machine(config: VertexConfig) -> Job:
    gpu = config.machine in ("gpu", "spot")
    allowed = list(GPU_MACHINES if gpu else CPU_MACHINES)
    chosen = config.machine_type or allowed[1]
    if chosen not in allowed:
        raise ConfigError(f"machine_type={chosen}: machine={config.machine} runs on {', '.join(allowed)}")
    return {"machineType": chosen, **({"acceleratorType": GPU_MACHINES[chosen], "acceleratorCount": 1} if gpu else {})}


def _scheduling(config: VertexConfig) -> Job:
    """A spot machine may be taken away: another one goes on from the checkpoint in the bucket (worker.py).

    Of several machines none goes on without the others, so all of them start again.
    """
    spot = {"strategy": "SPOT"} if config.machine == "spot" else {}
    again = {"restartJobOnWorkerRestart": True} if spot or config.workers > 1 else {}
    return {"timeout": f"{config.hours * 3600}s", **spot, **again}


def parse_job(job: Mapping[str, Any]) -> "aiplatform_v1.CustomJob | aiplatform_v1.HyperparameterTuningJob":
    """The vendor's own type. Raises ConfigError for a key, a type or a value that it does not know."""
    from google.cloud import aiplatform_v1
    from google.protobuf.json_format import ParseError

    kind = aiplatform_v1.HyperparameterTuningJob if "studySpec" in job else aiplatform_v1.CustomJob
    try:
        found: aiplatform_v1.CustomJob | aiplatform_v1.HyperparameterTuningJob = kind.from_json(
            json.dumps(job), ignore_unknown_fields=False
        )
    except ParseError as error:
        raise ConfigError(f"not a {kind.__name__}: {error}") from error
    return found


def open_client(project: Project) -> "aiplatform_v1.JobServiceClient":
    from google.cloud import aiplatform_v1

    with refusals("Vertex AI"):
        return aiplatform_v1.JobServiceClient(client_options={"api_endpoint": f"{project.region}-aiplatform.googleapis.com"})


def submit(jobs: "aiplatform_v1.JobServiceClient", project: Project, job: Mapping[str, Any]) -> str:
    """Send it; the name that Vertex gave it."""
    parsed = parse_job(job)
    with refusals("Vertex AI"):
        if "studySpec" in job:
            made = jobs.create_hyperparameter_tuning_job(parent=project.parent, hyperparameter_tuning_job=parsed)
        else:
            made = jobs.create_custom_job(parent=project.parent, custom_job=parsed)
    say(f"submitted: {made.name}")
    name: str = made.name
    return name


main = command(run)

if __name__ == "__main__":
    main()
