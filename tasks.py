"""What a person does with this repository, by name: `uv run invoke --list`. Each task prints the line that it runs.

`check` is all that a change has to pass: CI, the GitHub workflow and the pre-commit hooks run its lines (tests/house/ proves it).
"""

import os
import shlex
import sys

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

LINT = "uv run ruff check ."
FORMAT = "uv run ruff format --check ."
TYPES = "uv run mypy"
CONTRACTS = "uv run lint-imports --no-logo"
MATERIALISE = "uv run python -m pigeonhole.dataset.materialise"
# Refuses data that differ from data.dvc, and puts equal data into DVC's cache, so that `dvc status` and `dvc push` work.
COMMIT = "uv run dvc commit --quiet data.dvc"
STATUS = "uv run dvc status"
TEST = "uv run pytest --cov=pigeonhole"
# In an environment of its own: Ray brings a command `serve` that would take the place of ours.
TEST_SCORING = "uv run --isolated --group score pytest tests/scoring"
RULES = (
    "promtool check rules monitoring/recording_rules.yaml monitoring/alert_rules.yaml",
    "promtool test rules monitoring/rules_test.yaml",
)

# What CI has no way to install: a test that is skipped there for any other reason fails the run.
MAY_SKIP = ("needs the score group", "needs a GPU", "needs the shared folder", "needs Windows")


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


@task(help={"url": "gs://BUCKET/PREFIX, or any other URL that DVC can write to"})
def remote(context: Context, url: str) -> None:
    """Let `dvc push` and `dvc pull` use a bucket of yours (kept in .dvc/config.local, which git ignores)."""
    show(context, f"uv run dvc remote add --local --force --default gcs {shlex.quote(url)}")


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
def test(context: Context) -> None:
    """Run all tests and print their coverage; on CI, a skip for want of something that CI installs is a failure."""
    skips = forbidden_skips(show(context, TEST)) + forbidden_skips(show(context, TEST_SCORING))
    if skips and os.environ.get("CI"):
        raise Exit("\n".join(["skipped, though CI installs what they need:", *skips]), code=1)


@task(lint, format_, types, contracts, write, status, test)
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


@task(help={"which": "serve, drift, train, or several in quotes", "bundle": "a bundle's folder that serve is to answer from"})
def images(context: Context, which: str = "serve", bundle: str = "") -> None:
    """Build images with Docker or buildah, start them and ask them something (minutes; no part of check)."""
    given = [*which.split(), *([f"bundle={bundle}"] if bundle else [])]
    show(context, f"uv run python dockerfiles/build.py {shlex.join(given)}")


@task
def rules(context: Context) -> None:
    """Check Prometheus's rules and run their unit tests (promtool comes with Debian's prometheus)."""
    for line in RULES:
        show(context, line)


@task
def up(context: Context) -> None:
    """Start the service, the drift service and the page over this folder; Ctrl-C stops them."""
    show(context, "uv run python -m frontend.up")


@task
def ci(context: Context) -> None:
    """Do here what CI does in a fresh clone."""
    show(context, "bash .ci/run")


namespace = Collection(
    lint, format_, types, contracts, test, check, train, serve, up, images, rules, ci, data=Collection(write, status, remote)
)
