"""The names of everything in a Google Cloud project, all derived from two variables, and the one way to fill them into a file.

No file of this repository names a project, a bucket, a region or an address.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigeonhole.errors import ConfigError

PROJECT = "PIGEONHOLE_PROJECT"
REGION = "PIGEONHOLE_REGION"
WANDB_SECRET = "wandb-api-key"  # noqa: S105  the secret's name
METRICS_SECRET = "pigeonhole-run-monitoring"  # noqa: S105  the configuration of the metrics sidecar, mounted as a file


@dataclass(frozen=True)
class Project:
    """A project and a region, checked for their form only; whether they exist is the preflight's business."""

    id: str
    region: str

    @property
    def parent(self) -> str:
        return f"projects/{self.id}/locations/{self.region}"

    @property
    def bucket(self) -> str:
        return f"{self.id}-pigeonhole"

    @property
    def registry(self) -> str:
        """The Pigeonhole registry: bundles and aliases."""
        return f"gs://{self.bucket}/registry"

    @property
    def log(self) -> str:
        return f"gs://{self.bucket}/log"

    @property
    def repository(self) -> str:
        """Where images are pushed to."""
        return f"{self.region}-docker.pkg.dev/{self.id}/pigeonhole"

    def image(self, name: str, tag: str) -> str:
        """Raises ConfigError for a tag that moves."""
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{7,12}", tag):
            raise ConfigError(
                f"image={tag}: expected the commit that it was built from, all 40 hexadecimal digits or its first 7 to 12; "
                "`git rev-parse HEAD`"
            )
        return f"{self.repository}/{name}:{tag}"

    def account(self, role: str) -> str:
        """The service account that `serve`, `train` or `deploy` runs as."""
        return f"pigeonhole-{role}@{self.id}.iam.gserviceaccount.com"

    def secret(self, name: str) -> str:
        return f"projects/{self.id}/secrets/{name}"


def read_project(environment: Mapping[str, str]) -> Project:
    """Raises ConfigError naming the variable and what is allowed."""
    found = Project(environment.get(PROJECT, ""), environment.get(REGION, ""))
    if not re.fullmatch(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", found.id):
        raise ConfigError(f"{PROJECT}={found.id!r}: expected the id of a Google Cloud project; see `gcloud projects list`")
    if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]{1,2}", found.region):
        raise ConfigError(f"{REGION}={found.region!r}: expected a region such as europe-west4; `gcloud compute regions list`")
    return found


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Fill `${NAME}` in. Raises ConfigError for a name without a value and for a value that no place takes."""
    template = string.Template(text)
    asked = set(template.get_identifiers())
    if missing := sorted(asked - values.keys()):
        raise ConfigError(f"no value for ${{{missing[0]}}}; given are {', '.join(sorted(values))}")
    return template.substitute(values)


def read_yaml(path: Path, values: Mapping[str, str]) -> Any:
    """A file of this repository with its substitutions made. Raises ConfigError."""
    import yaml  # only the commands that deploy need it

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file here; run this in the folder of the repository") from error
    return yaml.safe_load(substitute(text, values))
