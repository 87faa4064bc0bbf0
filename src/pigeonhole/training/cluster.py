"""Several machines of one job on Vertex AI: which of them this is, and torchrun on it.

Vertex tells each machine of the whole job in CLUSTER_SPEC. torchrun wants a number for each machine, and the name and port of the
first one, where all of them meet; it starts `train` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. There is one process a
machine: it has all cores, or the one GPU. Knows nothing of how the work is shared out: that is the trainer's.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigeonhole.errors import RunError

CLUSTER = "CLUSTER_SPEC"
TRAIN = Path(sys.executable).parent / "train"


@dataclass(frozen=True)
class Place:
    """The number of this machine among those of its job, and where they meet."""

    rank: int
    machines: int
    host: str
    port: int


def read_place(spec: str) -> Place | None:
    """What CLUSTER_SPEC says; None for a job of one machine. Raises RunError for what is no such thing."""
    try:
        found = json.loads(spec or "{}")
        pools: dict[str, list[str]] = found.get("cluster", {})
        machines = [(pool, index) for pool in sorted(pools) for index in range(len(pools[pool]))]
        if len(machines) < 2:
            return None
        host, _, port = pools[machines[0][0]][0].rpartition(":")
        rank = machines.index((found["task"]["type"], int(found["task"]["index"])))
        return Place(rank, len(machines), host, int(port))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{CLUSTER}={spec[:200]}: not the description of a cluster that Vertex AI gives") from error


def torchrun(place: Place, arguments: Sequence[str], program: Path = TRAIN) -> list[str]:
    """The line that runs a program as one process of all machines'."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"),
        *(f"--nnodes={place.machines}", f"--node-rank={place.rank}"),
        *(f"--master-addr={place.host}", f"--master-port={place.port}"),
        *("--no-python", str(program), *arguments),
    ]


def train_together(place: Place, arguments: Sequence[str], program: Path = TRAIN) -> Any:
    """Train with the other machines; what `train` printed on the first, {"machine": N} on another. Raises RunError.

    SIGTERM is handed on, so that a machine that is taken away leaves its checkpoint.
    """
    with subprocess.Popen(torchrun(place, arguments, program), stdout=subprocess.PIPE, text=True) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            printed, _ = process.communicate()
        finally:
            signal.signal(signal.SIGTERM, before)
    if process.returncode:
        raise RunError(f"torchrun ended with {process.returncode} on machine {place.rank} of {place.machines}; its lines say why")
    return json.loads(printed) if place.rank == 0 else {"machine": place.rank}
