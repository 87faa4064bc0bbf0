"""Kill a scoring job at random points with SIGKILL, give the same command again, and compare all files with an undisturbed run.

    uv run --isolated --group score python -m benchmarks.scoring.chaos bundle=URL [kills=30] [rows=6000] [seed=0]

A point is a moment between a job's start and its end; the victim is, by turns, the driver or one of Ray's workers (an actor that
scores, or a reader; the driver where none has started yet). Prints one JSON object; exit code 3 where a byte differs.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
from benchmarks.scoring.processes import family_of, title_of, workers_of

from pigeonhole.bundle import open_bundle
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.options import read_options, setting

SCORE = [sys.executable, "-c", "from pigeonhole.scoring.score import main; main()"]
WORDS = ("parcel", "invoice", "password", "courier", "charge", "login", "where", "is", "my", "not", "again", "please", "twice")
JOB_S = 600.0
SURVIVORS_S = 120.0  # Ray's agents notice by a call that times out after a minute


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    kills: int = setting(30, "processes that are killed", ge=1)
    rows: int = setting(6000, "of the table", ge=1)
    seed: int = setting(0, "draws the moments", ge=0)


@dataclass
class Toll:
    """Who was killed, in how many pieces the jobs were done, and how often one ended by itself and asked to be begun again."""

    victims: Counter[str] = field(default_factory=Counter)
    outputs: int = 0
    starts: int = 0
    gave_up: int = 0


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    open_bundle(options.bundle)  # before all else: what the jobs say of it is not shown
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_table(folder / "in.jsonl", options.rows)
        words = [f"bundle={options.bundle}", f"input={folder / 'in.jsonl'}", "text=text", "id=id", "shard_rows=200"]
        began = time.monotonic()
        with job([*words, f"output={folder / 'undisturbed'}"]) as process:
            code_of(process)
        seconds = time.monotonic() - began
        if process.returncode:
            raise RunError(f"the undisturbed run ended with {process.returncode}")
        expected = files_of(folder / "undisturbed")
        toll = torment(words, folder, expected, options.kills, seconds, random.Random(options.seed))
    return {
        "kills": dict(toll.victims),
        "outputs": toll.outputs,
        "starts": toll.starts,
        "gave_up": toll.gave_up,
        "files_each": len(expected),
        "identical": True,
    }


def write_table(path: Path, rows: int) -> None:
    """Rows of 1 to 30 words, one in 400 without a text."""
    words = random.Random(1)
    lines = []
    for number in range(rows):
        text = f"{' '.join(words.choices(WORDS, k=words.randint(1, 30)))} {number}"
        lines.append(msgspec.json.encode({"id": number, "text": None if number % 400 == 7 else text}) + b"\n")
    path.write_bytes(b"".join(lines))


def torment(
    words: Sequence[str], folder: Path, expected: dict[str, bytes], kills: int, seconds: float, points: random.Random
) -> Toll:
    """Until so many processes were killed: jobs over new outputs, each begun again until it ends. Raises RunError.

    `seconds` is how long a job takes.
    """
    toll = Toll()
    left_behind: list[int] = []
    while toll.victims.total() < kills:
        output = folder / f"disturbed-{toll.outputs}"
        toll.outputs += 1
        while not (output / "_SUCCESS").exists():
            toll.starts += 1
            left = kills - toll.victims.total()
            with (folder / "stderr").open("w+b") as stderr, job([*words, f"output={output}"], stderr) as process:
                toll.victims.update(_kill_some(process, left, seconds, points, left_behind))
                code = code_of(process)
                if code == RunError.exit_code:
                    toll.gave_up += 1
                elif code not in (0, -signal.SIGKILL):
                    stderr.seek(0)
                    said = stderr.read().decode().strip()[-500:]
                    raise RunError(f"{output.name}: the job ended with {code} after {dict(toll.victims)}: {said}")
            say(f"{toll.victims.total()} of {kills} killed, {output.name} has {len(list(output.glob('part-*')))} parts")
        refuse_difference(output.name, files_of(output), expected)
    _refuse_survivors(left_behind)
    return toll


@contextmanager
def job(words: Sequence[str], stderr: int | IO[bytes] = subprocess.DEVNULL) -> Iterator["subprocess.Popen[bytes]"]:
    """A scoring command, ended at the latest with the block."""
    process = subprocess.Popen([*SCORE, *words], stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def code_of(process: "subprocess.Popen[bytes]") -> int:
    """Once it has ended. Raises RunError."""
    try:
        return process.wait(JOB_S)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"a job did not end within {JOB_S:.0f} s; give it fewer rows=") from error


def files_of(output: Path) -> dict[str, bytes]:
    """Every file but the manifest, which tells when the job began."""
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != "_manifest.json"}


def refuse_difference(name: str, found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Raises RunError where a file is missing, is one too many or has other bytes."""
    differing = sorted(file for file in {*found, *expected} if found.get(file) != expected.get(file))
    if differing:
        raise RunError(f"{name}: {len(differing)} files are not those of the undisturbed run: {', '.join(differing[:5])}")


def _kill_some(
    process: "subprocess.Popen[bytes]", most: int, seconds: float, points: random.Random, left_behind: list[int]
) -> Iterator[str]:
    """Until the driver is killed or the job has ended; tells the victims, and adds to `left_behind` whom a driver leaves."""
    for _ in range(most):
        with suppress(subprocess.TimeoutExpired):
            process.wait(points.uniform(0, seconds))
        if process.poll() is not None:
            return
        workers = workers_of(process.pid) if points.random() < 0.5 else []
        victim = points.choice(workers) if workers else process.pid
        if victim == process.pid:
            left_behind += family_of(process.pid)[1:]
            process.kill()
            yield "driver"
            return
        name = "scorer" if "Scorer" in title_of(victim) else "reader"
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            yield name


def _refuse_survivors(left_behind: Sequence[int]) -> None:
    """Raises RunError where one of Ray's processes lives on without its driver."""
    until = time.monotonic() + SURVIVORS_S
    while left := [title for title in map(title_of, left_behind) if "ray" in title]:
        if time.monotonic() > until:
            raise RunError(f"{len(left)} processes live on {SURVIVORS_S:.0f} s after their driver: {left[0][:80]}")
        time.sleep(0.5)


if __name__ == "__main__":
    command(run)()
