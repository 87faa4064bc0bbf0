"""What a run begins with, named by model.pretrained: found and checked before torch is imported."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pigeonhole import storage
from pigeonhole.errors import ConfigError

SCRATCH = "scratch"
TFIDF = "tfidf"  # no encoder at all: tfidf.py


@dataclass(frozen=True)
class Pretrained:
    """Weights and a tokenizer to begin with; `source` is a local folder or a hub id, whose weights shall have `sha256`."""

    source: str
    local: bool
    revision: str | None = None
    sha256: str | None = None


def locate(pretrained: str, sha256: str | None, key: str = "model.pretrained") -> Pretrained:
    """The pretrained weights, checked before anything is loaded. Raises StorageError, and ConfigError, which names the key."""
    if pretrained in (SCRATCH, TFIDF):
        if sha256 is not None:
            raise ConfigError(f"model.sha256: {key}={pretrained} begins with no weights that could have it; leave it out")
        return Pretrained(pretrained, local=True)
    folder = storage.local_path(pretrained)
    if "://" not in pretrained and not storage.exists(pretrained) and _looks_like_hub_id(pretrained):
        return Pretrained(pretrained, local=False, sha256=sha256)  # looked at when they have been fetched
    allowed = "a package:// or file:// URL of a folder with config.json and model.safetensors, or a hub id OWNER/NAME"
    if folder is None or not storage.is_local_file(str(folder / "config.json")):
        raise ConfigError(f"{key}={pretrained}: no model is there; expected {allowed}")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{key}={pretrained}: model.safetensors is missing; expected {allowed}")
    if sha256 is not None:
        verify_weights(pretrained, weights, sha256)
    return Pretrained(str(folder), local=True)


def digest(pretrained: Pretrained) -> str | None:
    """sha256 of what a run begins with, weights, configuration and tokenizer; None where no folder says it."""
    if not pretrained.local or pretrained.source in (SCRATCH, TFIDF):
        return None
    folder = Path(pretrained.source)
    texts = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model"))
    found = hashlib.sha256()
    for path in (folder / "model.safetensors", *texts):
        found.update(f"{path.name} {sha256_of(path)}\n".encode())
    return found.hexdigest()


def _looks_like_hub_id(text: str) -> bool:
    return re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", text) is not None


def verify_weights(pretrained: str, weights: Path, sha256: str) -> None:
    """Raises ConfigError for other weights than the configuration promises."""
    found = sha256_of(weights)
    if found != sha256:
        raise ConfigError(
            f"model.pretrained={pretrained}: model.safetensors has sha256 {found}, model.sha256 expects {sha256}; "
            "give that of the weights that you want, or model.sha256=null"
        )


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
