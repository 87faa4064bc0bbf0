"""What a person does with this repository, by name: `uv run invoke --list`. Each task prints the line that it runs.

`check` is all that a change has to pass: CI, the GitHub workflow and the pre-commit hooks run its lines (tests/house/ proves it).
"""

import os
import re
import shlex
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

# invoke finds this file from a folder below too, where every line would check or write that folder alone, or nothing.
os.chdir(Path(__file__).parent)

LINT = "uv run ruff check ."
FORMAT = "uv run ruff format --check ."
TYPES = "uv run mypy"
CONTRACTS = "uv run lint-imports --no-logo"
REFERENCE = "uv run python docs/reference.py"
SITE = "uv run zensical build --clean --strict"
MATERIALISE = "uv run python -m pigeonhole.dataset.materialise"
# Refuses data that differ from data.dvc, and puts equal data into DVC's cache, so that `dvc status` and `dvc push` work.
COMMIT = "uv run dvc commit --quiet data.dvc"
STATUS = "uv run dvc status"
TICKETS = "src/pigeonhole/dataset/tickets/tickets.csv"
TEST = "uv run pytest --cov=pigeonhole"
# In an environment of its own: Ray brings a command `serve` that would take the place of ours. In one process: who looks for a
# running cluster would find that of the other one.
TEST_SCORING = "uv run --isolated --group score pytest -n 0 tests/scoring"
RULES = (
    "promtool check rules monitoring/recording_rules.yaml monitoring/alert_rules.yaml",
    "promtool test rules monitoring/rules_test.yaml",
)

SECRETS = "uv run python .github/secret_scan.py ."
# What goes into an image, by the group that its dockerfile installs; frontend holds nothing of the package.
IMAGE_GROUPS = {name: f"--no-default-groups --group {name}" for name in ("serve", "drift", "train")} | {
    "score": "--no-default-groups --group score-cluster",
    "frontend": "--only-group frontend",
}
AUDITOR = "uvx pip-audit@2.10.1 --strict --disable-pip --requirement artefacts/audit.txt"
# The oldest torch that pyproject.toml allows, in the place of the lock's.
TORCH = "2.8.0"
TORCH_VERSION = 'uv run --no-sync python -c "import torch; print(torch.__version__)"'
TRAINING_TESTS = "uv run --no-sync pytest tests/training"
FUZZ = "uv run pytest -m hypothesis --hypothesis-profile=nightly"

CHAOS_SCORING = "uv run --isolated --group score python -m benchmarks.scoring.chaos"
BASE = "artefacts/base"
LOAD = "uv run --isolated --group load python -m tests.load"

# What CI has no way to install: a test that is skipped there for any other reason fails the run.
MAY_SKIP = ("needs the score group", "needs a GPU", "needs the shared folder", "not Windows", "needs Linux")


def show(context: Context, line: str) -> str:
    """Print the line, run it and return what it printed; where it fails, the task ends with its exit code."""
    result = context.run(line, echo=True, echo_format="{command}", in_stream=False)
    return result.stdout if result else ""


def forbidden_skips(output: str) -> list[str]:
    """The `SKIPPED` lines of pytest's summary whose reason CI does not accept."""
    skipped = [line for line in output.splitlines() if line.startswith("SKIPPED ")]
    return [line for line in skipped if not any(reason in line for reason in MAY_SKIP)]


@task(default=True)
def write(context: Context) -> None:
    """Write data/ from the package and check it against data.dvc."""
    show(context, MATERIALISE)
    show(context, COMMIT)


@task
def status(context: Context) -> None:
    """Check that data/ is what data.dvc says."""
    if "up to date" not in show(context, STATUS):
        raise Exit("data/ is not what data.dvc says; `uv run invoke data` writes it again", code=1)


@task(help={"url": "gs://BUCKET/PREFIX, or any other URL that DVC can write to; unset: the bucket of PIGEONHOLE_PROJECT"})
def remote(context: Context, url: str = "") -> None:
    """Let `dvc push` and `dvc pull` use a bucket (kept in .dvc/config.local, which git ignores)."""
    project = os.environ.get("PIGEONHOLE_PROJECT", "")
    if not (url or project):
        raise Exit("no bucket: set PIGEONHOLE_PROJECT, or give --url gs://BUCKET/PREFIX", code=2)
    where = shlex.quote(url or f"gs://{project}-pigeonhole/dvc")
    show(context, f"uv run dvc remote add --local --force --default gcs {where}")
    show(context, "uv run dvc remote modify --local gcs verify true")


@task(help={"base": "a commit", "out": "where the report goes"})
def change(context: Context, base: str, out: str = "artefacts/data-change.md") -> None:
    """Compare the data with those of another commit; a change over a limit fails."""
    before = f"artefacts/{Path(TICKETS).name}"
    Path(before).parent.mkdir(parents=True, exist_ok=True)
    show(context, f"git show {shlex.quote(f'{base}:{TICKETS}')} > {before}")
    show(context, f"uv run compare-data before={before} after={TICKETS} report={shlex.quote(out)}")


@task
def lint(context: Context) -> None:
    """Check the code with ruff."""
    show(context, LINT)


@task(name="format")
def format_(context: Context) -> None:
    """Check the formatting (`uv run ruff format` mends it)."""
    show(context, FORMAT)


@task
def types(context: Context) -> None:
    """Check the types, strictly."""
    show(context, TYPES)


@task
def contracts(context: Context) -> None:
    """Check who imports whom."""
    show(context, CONTRACTS)


@task
def docs(context: Context) -> None:
    """Write the reference from the code and build the documentation into site/; a broken link is a failure."""
    show(context, REFERENCE)
    show(context, SITE)


@task
def test(context: Context) -> None:
    """Run all tests, batch scoring's beside the others, and print their coverage.

    On CI, a skip for want of something that CI installs is a failure.
    """
    with ThreadPoolExecutor(1) as beside:  # half of their time they wait
        scoring = beside.submit(context.run, TEST_SCORING, hide=True, warn=True, in_stream=False)
        try:
            output = show(context, TEST)
        finally:
            told = scoring.result()
            print(TEST_SCORING, told.stdout, told.stderr, sep="\n")
    if told.failed:
        raise Exit("batch scoring's tests failed", code=told.exited)
    skips = forbidden_skips(output) + forbidden_skips(told.stdout)
    if skips and os.environ.get("CI"):
        raise Exit("\n".join(["skipped, though CI installs what they need:", *skips]), code=1)


@task(lint, format_, types, contracts, docs, write, status, test)
def check(context: Context) -> None:  # noqa: ARG001  the tasks before it do the work
    """Do all that a change has to pass."""
    print("all checks passed", file=sys.stderr)


@task(help={"experiment": "a file of configs/experiment"})
def train(context: Context, experiment: str = "fast") -> None:
    """Fine-tune, seal and register a bundle."""
    show(context, f"uv run train experiment={shlex.quote(experiment)}")


@task
def serve(context: Context) -> None:
    """Serve the production bundle of the local registry."""
    show(context, "uv run serve")


@task(
    help={
        "which": "serve, drift, frontend, score, train, or several in quotes",
        "bundle": "the folder that they work with; without it, a bundle of six words",
        "skip": "where the kernel lets nobody make a container, say so and end with 0",
    }
)
def images(context: Context, which: str = "serve drift frontend", bundle: str = "", skip: bool = False) -> None:
    """Build images with Docker or buildah, start them and ask them something."""
    given = [
        *which.split(),
        *([f"bundle={bundle}"] if bundle else []),
        *(["skip=allowed"] if skip else []),
        "sbom=artefacts/sbom",
    ]
    show(context, f"uv run python -m dockerfiles.build {shlex.join(given)}")


def cloud(context: Context, line: str, **flags: bool) -> None:
    given = "".join(f" --{name.replace('_', '-')}" for name, wanted in flags.items() if wanted)
    show(context, f"uv run --no-default-groups --group cloud --group dev python -m pigeonhole.cloud.{line}{given}")


@task
def setup(context: Context, dry_run: bool = False) -> None:
    """Make what a Google Cloud project lacks: APIs, accounts, roles, bucket, images, secrets, identity, alerts, schedule."""
    cloud(context, "setup setup", dry_run=dry_run)


@task(help={"image": "a commit whose images are looked at", "machine": "cpu, gpu or spot: the quota that is looked at"})
def preflight(context: Context, dry_run: bool = False, image: str = "", machine: str = "cpu") -> None:
    """Name each thing that a project lacks, with the line that makes it."""
    given = f" machine={shlex.quote(machine)}" + (f" image={shlex.quote(image)}" if image else "")
    cloud(context, f"setup preflight{given}", dry_run=dry_run)


@task(help={"data": "take away bucket, images and secrets too"})
def teardown(context: Context, dry_run: bool = False, data: bool = False) -> None:
    """Take away the services and what cloud.setup made; what holds data stays unless --data."""
    cloud(context, "setup teardown", dry_run=dry_run, data=data)


@task(help={"assume": "key=value assumptions in quotes; python -m pigeonhole.cloud.cost --help lists them"})
def cost(context: Context, assume: str = "") -> None:
    """Estimate a month's cost from assumptions that are all in sight."""
    cloud(context, " ".join(["cost", *map(shlex.quote, assume.split())]))


@task(name="check", help={"images": "the images to build, of serve drift frontend score train"})
def cloud_check(context: Context, images: str = "serve drift frontend") -> None:
    """Check every cloud file on the ground, really run what can be run here, and print how each was checked."""
    show(context, f"uv run python -m tests.cloud images={shlex.quote(images)}")


@task
def secrets(context: Context) -> None:
    """Look for secrets in every line that was ever committed (offline)."""
    show(context, SECRETS)


@task
def sbom(context: Context, out: str = "artefacts/sbom") -> None:
    """Write what the lock puts into each image, as CycloneDX."""
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, groups in IMAGE_GROUPS.items():
        file = shlex.quote(f"{out}/{name}.cdx.json")
        show(context, f"uv export --quiet --frozen --preview {groups} --format cyclonedx1.5 --output-file {file}")


@task
def audit(context: Context) -> None:
    """Ask pip-audit about what the lock puts into each image (needs the network)."""
    Path("artefacts").mkdir(exist_ok=True)
    for groups in IMAGE_GROUPS.values():
        show(context, f"uv export --quiet --frozen --no-emit-project {groups} --output-file artefacts/audit.txt")
        show(context, AUDITOR)


@task(help={"version": "what is installed in the place of the lock's"})
def torch(context: Context, version: str = TORCH) -> None:
    """Install another torch, print which one it is, and run training's tests with it (`uv sync` brings the lock's back)."""
    show(context, f"uv pip install torch=={shlex.quote(version)}")
    found = show(context, TORCH_VERSION).strip()
    if found.partition("+")[0] != version:
        raise Exit(f"torch {found} is installed, not {version}", code=1)
    show(context, TRAINING_TESTS)


@task
def fuzz(context: Context) -> None:
    """Run the property tests with thousands of examples each."""
    show(context, FUZZ)


@task(default=True, name="log", help={"bundle": "a bundle's folder", "trials": "kills of each kind", "seed": "draws the moments"})
def chaos_log(context: Context, bundle: str, trials: int = 4, seed: int = 0) -> None:
    """Break the prediction log's promises: kill servers, fail the store, hold the log against what clients were told."""
    show(context, f"uv run chaos bundle={shlex.quote(bundle)} trials={trials} seed={seed}")


@task(name="scoring", help={"bundle": "a bundle's folder", "kills": "of a job", "seed": "draws the moments"})
def chaos_scoring(context: Context, bundle: str, kills: int = 10, seed: int = 0) -> None:
    """Kill a scoring job at random moments and hold its files against an undisturbed run's."""
    show(context, f"{CHAOS_SCORING} bundle={shlex.quote(bundle)} kills={kills} seed={seed}")


@task(help={"tag": "vX.Y.Z, as in pyproject.toml"})
def release(context: Context, tag: str) -> None:
    """Make what a release holds: the wheel, a bill of materials for each image, the changelog's section."""
    version = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if tag != f"v{version}":
        raise Exit(f"tag {tag}: pyproject.toml says version {version}; tag v{version}, or change the version first", code=2)
    notes = section(Path("CHANGELOG.md").read_text(encoding="utf-8"), version)
    show(context, "uv build --out-dir artefacts/release")
    sbom(context, "artefacts/release")
    Path("artefacts/notes.md").write_text(notes, encoding="utf-8")


def section(changelog: str, version: str) -> str:
    """What the changelog says of a version. Raises Exit where it says nothing."""
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if not found or not found[1].strip():
        raise Exit(f"CHANGELOG.md has no section [{version}]; rename [Unreleased] to it", code=2)
    return found[1].strip() + "\n"


@task
def rules(context: Context) -> None:
    """Check Prometheus's rules and run their unit tests (promtool comes with Debian's prometheus)."""
    for line in RULES:
        show(context, line)


@task(
    help={
        "bundle": "the folder of a bundle",
        "users": "visitors at one time",
        "seconds": "how long they stay",
        "base": "a commit whose server is asked too; ours may be little slower",
    }
)
def load(context: Context, bundle: str, users: int = 50, seconds: int = 30, base: str = "") -> None:
    """Let Locust's visitors ask a real server; a failed or slow answer fails, the report is kept in artefacts/load."""
    against = ""
    if base:
        if Path(BASE).exists():
            show(context, f"git worktree remove --force {BASE}")
        show(context, f"git worktree add --detach {BASE} {shlex.quote(base)}")
        against = f" against={BASE}"
    show(context, f"{LOAD} bundle={shlex.quote(bundle)} users={users} seconds={seconds}{against}")


@task(help={"bundle": "the folder of a bundle"})
def alarm(context: Context, bundle: str) -> None:
    """Kill a real server and wait for Alertmanager to tell (apt-get install prometheus prometheus-alertmanager)."""
    show(context, f"uv run python -m monitoring.alarm bundle={shlex.quote(bundle)}")


@task
def up(context: Context) -> None:
    """Start the service, the drift service and the page over this folder; Ctrl-C stops them."""
    show(context, "uv run python -m frontend.up")


@task
def ci(context: Context) -> None:
    """Do here what CI does in a fresh clone."""
    show(context, "bash .ci/run")


namespace = Collection(
    lint, format_, types, contracts, docs, test, check, ci, train, serve, up, images, rules, secrets, sbom, audit, torch, fuzz,
    load, release, alarm,
    data=Collection(write, status, remote, change), cloud=Collection(setup, preflight, teardown, cost, cloud_check),
    chaos=Collection(chaos_log, chaos_scoring),
)  # fmt: skip
