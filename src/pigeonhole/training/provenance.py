"""Where a model came from: commit, lock file, configuration, data, seed, machine and versions."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "onnx", "onnxruntime", "numpy", "scikit-learn", "pigeonhole")


def collect(
    config: Mapping[str, Any], data_sha256: str, seed: int, threads: int, amendments: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`amendments`: sha256 of the files that changed rows as they were read, by the names that the provenance gives them."""
    lock = ROOT / "uv.lock"
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if _git("rev-parse", "HEAD") is None else bool(_git("status", "--porcelain")),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "config": dict(config),
        "data_sha256": data_sha256,
        **(amendments or {}),
        "seed": seed,
        "threads": threads,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "libraries": {library: version(library) for library in LIBRARIES},
    }


def _git(*arguments: str) -> str | None:
    """What git says, or None outside a checkout (an image, an installed wheel) or without git."""
    if not (ROOT / ".git").exists():  # git would look above: a wheel lies in somebody else's project
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
