"""`uv run vertex-retrain image=COMMIT name=tickets …`: `retrain` as a job of Vertex AI, on the project's own registry and log.

In the cloud the alarm takes this way: the drift service publishes to a Pub/Sub topic, a Cloud Build trigger
(cloudbuild/triggers/retrain.yaml) hears of it and runs cloudbuild/retrain.yaml, which calls this.
"""

import os
from collections.abc import Sequence

from pigeonhole.cloud.project import Project, read_project
from pigeonhole.command import command, with_help
from pigeonhole.errors import ConfigError
from pigeonhole.loop.retrain import RetrainConfig, check_arguments
from pigeonhole.options import key_lines, read_options, split_own
from pigeonhole.training.vertex import Job, VertexConfig, job_around, open_client, submit

SET_HERE = ("registry", "log", "rows", "run")
FOR_TRAIN = ("workers", "sweep", "trials", "parallel")  # one retraining is one run on one machine
USAGE = """usage: vertex-retrain image=COMMIT name=MODEL [key=value …] [KEY OF train=value …] [gate.KEY=value …] [--dry-run]

`retrain` as a job of Vertex AI, on the project's own registry and log. --dry-run prints the job and sends nothing.
"""


def help_text() -> str:
    of_retrain = key_lines(RetrainConfig, leave_out=SET_HERE)[1:]
    return "\n".join(
        [USAGE, *key_lines(VertexConfig, leave_out=FOR_TRAIN), "", "and of retrain (name is needed here):", *of_retrain]
    )


@with_help(help_text)
def run(arguments: list[str]) -> Job:
    own, retraining = split_own(VertexConfig, [argument for argument in arguments if argument != "--dry-run"])
    config = read_options(VertexConfig, own)
    check(config, retraining)
    project = read_project(os.environ)
    job = make_job(project, config, retraining)
    if "--dry-run" in arguments:
        return job
    return {"job": submit(open_client(project), project, job)}


main = command(run)


def check(config: VertexConfig, retraining: Sequence[str]) -> None:
    """Raises ConfigError for what the job itself would refuse, minutes later."""
    if check_arguments(retraining)[0].name is None:
        raise ConfigError("name: a value is missing, write name=MODEL: a project's registry may hold several")
    if config.machine == "sweep":
        raise ConfigError("machine=sweep: one retraining is one run; machine=cpu, gpu or spot")
    if config.workers > 1:
        raise ConfigError(f"workers={config.workers}: a retraining reads feedback and asks the gate once; expected workers=1")
    if fixed := [argument for argument in retraining if argument.partition("=")[0] in SET_HERE]:
        raise ConfigError(f"{fixed[0]}: the job reads and writes the project's own bucket; leave {', '.join(SET_HERE)} out")


def make_job(project: Project, config: VertexConfig, retraining: Sequence[str]) -> Job:
    """The body of a CustomJob."""
    places = [f"registry={project.registry}", f"log={project.log}", f"rows=gs://{project.bucket}/retrain"]
    container: Job = {"command": ["retrain"], "args": [*retraining, *places]}
    name = next(argument.removeprefix("name=") for argument in retraining if argument.startswith("name="))
    return job_around(project, config, f"pigeonhole-retrain-{name}-{config.image[:7]}-{config.machine}", container)


if __name__ == "__main__":
    main()
