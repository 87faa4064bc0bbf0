"""`vertex-worker`, what the train image runs on Vertex AI: `train`, or one trial of a sweep, with the W&B key fetched by name.

Vertex's environment variables take no secret references, so the job is given a name, and this process, which runs as the job's
service account, reads the secret behind it. The key is in no job, no log and no layer.
"""

import base64
import binascii
import json
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pigeonhole import storage
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import RunError
from pigeonhole.training import cluster
from pigeonhole.training.carry import Carrier

SECRET = "PIGEONHOLE_WANDB_SECRET"  # noqa: S105  projects/P/secrets/NAME/versions/V
METRIC = "validation_macro_f1"  # by which the trainer chooses its epoch, too
METRIC_FILE = "CLOUD_ML_HP_METRIC_FILE"  # Vertex sets it in the trials of a sweep
TRIAL = "CLOUD_ML_TRIAL_ID"
CHECKPOINTS = "AIP_CHECKPOINT_DIR"  # Vertex sets it to a folder in the bucket, for each trial of a sweep its own
JOB = "CLOUD_ML_JOB_ID"  # stays the same when the machine is taken away and another one comes
METADATA = "http://metadata.google.internal"
SECRETS = "https://secretmanager.googleapis.com"


HELP = f"""usage: vertex-worker [key=value …] [--key=value …]

Train as `train` does, on Vertex AI: the keys are those of `train --help`, a sweep's with dashes. The environment may set {SECRET}
(a secret's name; its value becomes WANDB_API_KEY), {CHECKPOINTS} (where the checkpoint is carried to, and fetched from by the
next machine), {cluster.CLUSTER} (where several machines train together, by torchrun) and, in a sweep, {METRIC_FILE}.
"""


@with_help(HELP)
def run(arguments: list[str]) -> Any:
    name = os.environ.get(SECRET, "")
    if name and not os.environ.get("WANDB_API_KEY"):
        key = fetch_secret(name)
        if key:
            os.environ["WANDB_API_KEY"] = key
    place = cluster.read_place(os.environ.get(cluster.CLUSTER, ""))
    result = train_carried(read_arguments(arguments), os.environ.get(CHECKPOINTS, ""), os.environ.get(JOB, "job"), place)
    if os.environ.get(METRIC_FILE):
        report(Path(result["run"]) / "history.jsonl", Path(os.environ[METRIC_FILE]), os.environ.get(TRIAL, "0"))
    return result


def read_arguments(arguments: list[str]) -> list[str]:
    """Vertex hands a trial its values as `--key=value`, whole numbers as `32.0`; `train` takes `key=32`."""
    read = []
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if equals and argument.startswith("--"):
            read.append(f"{key}={value.removesuffix('.0') if re.fullmatch(r'-?[0-9]+[.]0', value) else value}")
        else:
            read.append(argument)
    return read


def train_carried(arguments: list[str], checkpoints: str, job: str, place: cluster.Place | None = None) -> Any:
    """Train; on Vertex AI go on from where an earlier machine of the same job was taken away.

    Of several machines the first one alone has the checkpoint, as of several processes: it reads, writes and tells the others.
    """
    if not checkpoints or (place is not None and place.rank > 0):
        return _train(arguments, place)
    from pigeonhole.training import trainer  # torch: seconds that a missing role should not wait for

    given = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    out = given[-1] if given else "run"
    folder = storage.local_path(out)
    if folder is None:
        return _train(arguments, place)  # which refuses it
    carrier = Carrier(folder / "checkpoint", storage.join(checkpoints, job), (trainer.BEST, trainer.PROGRESS))
    if carrier.fetch():
        say(f"going on from the checkpoint in {checkpoints}")
    with carrier:
        return _train(arguments if given else [*arguments, f"out={out}"], place)


def _train(arguments: list[str], place: cluster.Place | None) -> Any:
    if place is not None:
        return cluster.train_together(place, arguments)
    from pigeonhole.training import train  # torch, as above

    return train.run(arguments)


def fetch_secret(name: str, metadata: str = METADATA, secrets: str = SECRETS) -> str:
    """The secret's value, or "" with a line that says why not: a run without W&B's key goes on offline.

    Raises RunError for an answer that is not Secret Manager's.
    """
    try:
        account = f"{metadata}/computeMetadata/v1/instance/service-accounts/default/token"
        token = _get(account, {"Metadata-Flavor": "Google"})["access_token"]
        answer = _get(f"{secrets}/v1/{name}:access", {"Authorization": f"Bearer {token}"})
        return base64.b64decode(answer["payload"]["data"]).decode().strip()
    except urllib.error.HTTPError as error:
        error.close()
        role = "the job's account needs roles/secretmanager.secretAccessor, and the secret a version"
        say(f"W&B: {name} answered {error.code} ({role}); this run is kept offline")
    except OSError as error:
        say(f"W&B: {name} cannot be reached ({error}); this run is kept offline")
    except (KeyError, ValueError, binascii.Error) as error:
        raise RunError(f"{name}: not an answer of Secret Manager") from error
    return ""


def _get(url: str, headers: dict[str, str]) -> dict[str, Any]:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  the two addresses above, or a test's
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
        return found


def report(history: Path, file: Path, trial: str) -> None:
    """One line in the form of the cloudml-hypertune package: the best epoch's value, which is the one of the bundle."""
    epochs = [json.loads(line) for line in history.read_text().splitlines()]
    best = max(epochs, key=lambda epoch: epoch[METRIC])
    line = {
        "timestamp": time.time(),
        "trial": trial,
        METRIC: str(best[METRIC]),
        "global_step": str(best["step"]),
        "checkpoint_path": "",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


main = command(run)

if __name__ == "__main__":
    main()
