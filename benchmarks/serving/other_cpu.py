"""What a bundle answers on another CPU, one that qemu emulates, beside what it answers here.

    uv run python -m benchmarks.serving.other_cpu bundle=URL [cpu=Nehalem]

Needs `qemu-x86_64` (Debian's qemu-user) and takes a minute: emulated, all is a hundred times slower. The golden probes and a few
more texts are asked of each precision. For each: the largest difference of a logit and the share of equal labels; and how many
times as far from fp32's the int8 logits of the probes are as those that were sealed. Prints one JSON object; exit code 4 where a
label differs or where that is more than a bundle may be when it opens.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.serving.overload import TEXTS

from pigeonhole.bundle import Bundle, open_bundle, read_golden
from pigeonhole.classifier import Classifier, is_rounded_anew, times_as_far
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, GateError, RunError
from pigeonhole.options import read_options, setting

QEMU = "qemu-x86_64"
PROGRAM = "from benchmarks.serving.other_cpu import tell; tell()"


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    cpu: str = setting("Nehalem", "as `qemu-x86_64 -cpu help` names it; qemu knows AVX2 (Haswell), but no AVX512")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise ConfigError(f"{QEMU} is not installed; Debian has it in the package qemu-user")
    bundle = open_bundle(options.bundle)
    here = _asked([sys.executable], bundle)
    say(f"asked here; now a {options.cpu}, which takes about a minute")
    there = _asked([qemu, "-cpu", options.cpu, sys.executable], bundle)
    precisions = {name: _compared(here[name], there[name]) for name in here}
    probes = read_golden(bundle)
    far = times_as_far(there["int8"][: len(probes)], probes) if "int8" in here else None
    found = {"cpu": options.cpu, "precisions": precisions, "int8_times_as_far_from_fp32": far}
    if any(each["same_labels"] < 1 for each in precisions.values()):
        raise GateError("a text has another label there", found)
    if far is not None and not is_rounded_anew(far):
        raise GateError("int8 is not about as far from fp32 there as when it was sealed", found)
    return found


def tell() -> None:
    """In a process of its own: the logits of each precision, by name, as JSON."""
    bundle = open_bundle(sys.argv[1])
    texts = [*(probe.text for probe in read_golden(bundle)), *TEXTS]
    answers = {name: Classifier.load(bundle, name).predict(texts) for name in bundle.manifest.models}
    print(json.dumps({name: [found.logits.tolist() for found in predictions] for name, predictions in answers.items()}))


def _asked(python: list[str], bundle: Bundle) -> dict[str, np.ndarray]:
    line = [*python, "-c", PROGRAM, str(bundle.folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{python[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return {name: np.array(logits) for name, logits in json.loads(done.stdout).items()}


def _compared(here: np.ndarray, there: np.ndarray) -> dict[str, float]:
    same = float((here.argmax(axis=1) == there.argmax(axis=1)).mean())
    return {"largest_difference": float(np.abs(here - there).max()), "same_labels": same}


if __name__ == "__main__":
    command(run)()
