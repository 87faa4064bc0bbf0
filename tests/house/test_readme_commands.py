"""The command lines of the README and of the documentation, run as they stand, on a model that is made in seconds.

Every line of every bash block is named here, with what is added to make it quick or with the reason why it is not run.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pigeonhole.port import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHERS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [README, *(page.read_text(encoding="utf-8") for page in OTHERS)]
BLOCKS: list[str] = [block for page in PAGES for block in re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
LINES = {line for block in BLOCKS for line in block.replace("\\\n  ", "").splitlines()}

QUICK = ["model=tiny", "trainer.epochs=1", "export.min_agreement=0", "tracking=none", "trainer.allow_dead_labels=true"]
TRAIN = "uv run train experiment=fast"
TRAIN_SEVERAL = "uv run train experiment=multilabel"
TRAIN_OWN = "uv run train data.path=my.csv data.text=message data.label=queue"
TRAIN_LONG = "uv run train experiment=long data.path=my.csv data.text=message data.label=queue"
TRAIN_SCOPE = (
    "uv run train data.path=my.csv data.text=message data.label=queue data.out_of_scope_path=strangers.csv decision.precision=0.9"
)
CHECK = "uv run check-data data=my.csv data.text=message data.label=queue"
EVALUATE = "uv run evaluate bundle=BUNDLE data.path=new.csv data.text=message data.label=queue"
PROMOTE = "uv run promote candidate=BUNDLE"
SERVE = "uv run serve"
KEYS = "uv run keys new keys=keys.json scopes=predict,feedback rate=10 days=90"
DRIFT = "uv run drift"
CURL, CURL_DRIFT = sorted(
    (line for line in LINES if line.startswith("curl ") and "127.0.0.1" in line), key=lambda line: ":8081" in line
)
RESUMABLE = "uv run train experiment=fast out=runs/mine"
ROLLBACK = "uv run rollback"
COMPACT = "uv run log-compact"
ERASE = "uv run log-erase key=0199c0de-0000-7000-8000-000000000000"
ERASE_OLD = "uv run log-erase days=90"
LIST_KEYS = "uv run keys list keys=keys.json"
LABEL_ERRORS = "uv run label-errors data.path=my.csv data.text=message data.label=queue"
CHECK_TAXONOMY = "uv run check-data data=my.csv data.text=message data.label=queue data.taxonomy=labels.yaml"
IMPORT = "uv run import-model model=FOLDER_OR_HUB_ID data=new.csv text=message label=queue"
EVALUATE_FP32 = "uv run evaluate bundle=BUNDLE precision=fp32"
ELSEWHERE = {
    "uv run pytest": "this is it",
    "uv sync": "made the environment of this test",
    "uv run pre-commit install": "would change the hooks of this clone; tests/house/test_tasks.py reads them",
    "uv run invoke --list": "tests/house/test_tasks.py reads every task",
    "uv run demo": "tests/loop/test_demo.py runs its short form",
    IMPORT: "tests/training/test_import_model.py, with a folder",
    "uv run sweep sweep=learning_rates data.path=my.csv data.text=message data.label=queue": "tests/training/test_sweep.py, tiny",
    "uv run sweep sweep=seeds experiment=fast data.path=my.csv data.text=message data.label=queue": "test_sweep.py, tiny",
    "uv run train --config-dir sweeps/learning_rates experiment=best": "tests/training/test_sweep.py composes it",
    f"{TRAIN_OWN} data.patch=label-errors.csv": "tests/dataset/test_patch.py",
    f"{TRAIN_OWN} data.taxonomy=labels.yaml": "tests/dataset/test_taxonomy.py reads it, tests/training/test_warm_start.py trains",
    f"{TRAIN_OWN} data.taxonomy=labels.yaml model.pretrained=runs/mine/model".replace(
        "train ", "train experiment=new_label ", 1
    ): ("tests/training/test_warm_start.py, on the tiny model"),
    "uv run train experiment=imbalance data.path=my.csv data.text=message data.label=queue": "tests/training/test_imbalance.py",
    "uv run train experiment=distilled model=minilm3 trainer.teacher=BUNDLE": "tests/training/test_distillation.py, tiny",
    "uv run train experiment=lora model=bert_base": "tests/training/test_lora.py, tiny; bert_base comes from the hub",
    "uv run invoke up": "tests/frontend/test_up.py starts and stops it",
    "uv sync --no-default-groups --group serve": "would take the libraries away from under the tests",
    "uv run deploy image=COMMIT model=tickets --dry-run": "tests/cloud/test_deploy.py, with a commit",
    "uv run deploy image=COMMIT service=drift model=tickets --dry-run": "tests/cloud/test_deploy.py, with a commit",
    "uv run vertex image=COMMIT experiment=fast machine=gpu --dry-run": "tests/training/test_vertex.py, with a commit",
    "uv run deploy image=COMMIT model=tickets": "tests/cloud/test_deploy.py, before a stand-in of Cloud Run",
    "uv run deploy image=COMMIT service=drift model=tickets": "tests/cloud/test_deploy.py, before a stand-in of Cloud Run",
    "uv run deploy image=COMMIT service=frontend": "tests/cloud/test_deploy.py, before a stand-in of Cloud Run",
    "uv run invoke cloud.setup --dry-run": "tests/cloud/test_setup.py",
    "uv run invoke cloud.setup": "tests/cloud/test_setup.py, before a gcloud of its own",
    "uv run invoke cloud.preflight": "tests/cloud/test_setup.py, before a gcloud of its own",
    "uv run invoke cloud.teardown --dry-run": "tests/cloud/test_setup.py",
    "uv run invoke cloud.cost": "tests/cloud/test_cost.py",
    "uv run train experiment=fast registry=gs://my-project-pigeonhole/registry": "tests/test_registry.py, in a bucket of its own",
    "uv run --isolated --group score score bundle=BUNDLE input='folder/*.parquet' output=scored text=message": (
        "tests/scoring/test_score.py, in the environment of Ray"
    ),
    "uv run train experiment=fast model=distilbert model.revision=COMMIT": "the encoder comes from the hub",
    "uv run train experiment=fast model=bert_base model.pretrained=FOLDER model.sha256=SHA256": (
        "tests/training/test_model.py opens folders and refuses other bytes"
    ),
}
FOREIGN = {
    "export ": "means what it says; the lines after it say what is made of it",
    "gcloud ": "needs a project of Google Cloud",
    "envsubst ": "needs a cluster; tests/scoring/test_rayclusters.py fills the file in and reads it",
    "ray job submit ": "needs a cluster",
    'curl -X POST -H "Authorization: ': "needs a cluster",
}
"""How lines begin that are other programs', with the reason why they are not run."""
COMMAND = re.compile(
    r"^ {4}(?:uv|uvx|curl|docker|podman|export|gcloud|git|kubectl|pip|python|ray|envsubst|torchrun) .*$", re.MULTILINE
)


def words(line: str) -> list[str]:
    """A README line as a command of this environment: `uv run NAME …` without uv's own start."""
    name, *arguments = shlex.split(line.removeprefix("uv run "))
    script = shutil.which(name, path=str(Path(sys.executable).parent))
    assert script, name
    return [script, *arguments]


class Workshop:
    """A folder of its own, as a newcomer's, with two CSV files in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIGEONHOLE_", "WANDB_"))}

    def run(self, line: str, *more: str, codes: tuple[int, ...] = (0,)) -> Any:
        """Run a line and return the JSON object that it printed."""
        command = [*words(line), *more]
        answer = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert answer.returncode in codes, answer.stderr
        return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    _, *rows = (ROOT / "src/pigeonhole/dataset/tickets/tickets.csv").read_text(encoding="utf-8").splitlines()
    for name, some in (("my.csv", rows[::4]), ("new.csv", rows[1::4])):
        (folder / name).write_text("\n".join(["message,queue", *some, ""]), encoding="utf-8")
    return Workshop(folder)


@pytest.fixture(scope="module")
def trained(workshop: Workshop) -> dict[str, Any]:
    """What the README's first command printed."""
    printed: dict[str, Any] = workshop.run(TRAIN, *QUICK)
    return printed


@contextlib.contextmanager
def started(line: str, workshop: Workshop, **environment: str) -> Iterator[str]:
    """The address of a server that a README line starts, while it answers GET /health; SIGTERM has to end it."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(words(line), cwd=workshop.folder, env={**workshop.environment, **environment, "PORT": str(port)})
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and server.poll() is None and not is_healthy(address):
            time.sleep(0.1)
        assert server.poll() is None
        yield address
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0


def is_healthy(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
        return bool(reply.status == 200)
    return False


def ask(line: str, address: str) -> Any:
    """Send what a README's curl line sends, to `address`, and return the JSON reply."""
    options = dict(zip(given := shlex.split(line), given[1:], strict=False))
    url = next(word for word in given if word.startswith("http://"))
    headers = dict([options["-H"].split(": ")]) if "-H" in options else {}
    body = options["-d"].encode() if "-d" in options else b""
    request = urllib.request.Request(address + urllib.parse.urlsplit(url).path, body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


@pytest.fixture(scope="module")
def served(workshop: Workshop, trained: dict[str, Any]) -> Iterator[str]:
    """The address of the README's second command; it serves what `trained` left in the registry."""
    assert trained["alias"] == "production"
    with started(SERVE, workshop) as address:
        yield address


def test_every_line_is_run_here_or_has_its_reason() -> None:
    trained = {TRAIN, TRAIN_OWN, TRAIN_LONG, TRAIN_SCOPE, RESUMABLE}
    quick = {*trained, CHECK, EVALUATE, EVALUATE_FP32, PROMOTE, ROLLBACK, COMPACT, KEYS, LIST_KEYS}
    recipes = {LABEL_ERRORS, CHECK_TAXONOMY, TRAIN_SEVERAL}
    foreign = {line for line in LINES if line.startswith(tuple(FOREIGN))}
    assert {*quick, *recipes, ERASE, ERASE_OLD, SERVE, CURL, DRIFT, CURL_DRIFT, *ELSEWHERE} == LINES - foreign
    assert [start for start in FOREIGN if not any(line.startswith(start) for line in foreign)] == []


def test_no_command_stands_in_a_block_that_nobody_looks_into() -> None:
    others = {kind for page in PAGES for kind in re.findall(r"^```(\w+)$", page, re.MULTILINE)}
    assert others <= {"bash", "python", "json", "yaml", "text", "csv", "toml"}
    assert [line for page in PAGES for line in COMMAND.findall(page)] == []


def test_a_reason_that_names_a_test_names_one_that_is_there() -> None:
    named = {file for reason in (*ELSEWHERE.values(), *FOREIGN.values()) for file in re.findall(r"tests/[\w/]+\.py", reason)}
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_train_prints_bundle_metrics_baselines_and_seconds(trained: dict[str, Any], workshop: Workshop) -> None:
    assert trained.keys() >= {"bundle", "test", "baselines", "seconds"}
    assert trained["test"].keys() >= {"accuracy", "macro_f1", "ece"}
    assert trained["baselines"].keys() == {"majority", "tfidf"}
    assert trained["bundle"].startswith(f"file://{workshop.folder}/registry/")


def test_the_server_answers_the_curl_line(served: str, trained: dict[str, Any]) -> None:
    answer = ask(CURL, served)
    assert answer.keys() >= {"label", "score", "probabilities", "decision", "prediction_id", "model_version"}
    assert answer["label"] in answer["probabilities"]
    assert answer["model_version"] == trained["version"]


@pytest.mark.usefixtures("served")
def test_the_drift_service_answers_the_curl_line(workshop: Workshop) -> None:
    with started(DRIFT, workshop, PIGEONHOLE_DRAW="no") as address:
        assert ask(CURL_DRIFT, address)["verdict"] == "too_few_rows"


def test_the_table_of_variables_is_that_of_the_server() -> None:
    answer = subprocess.run([*words(SERVE), "--help"], capture_output=True, text=True, check=True)
    told = {line.split()[0]: line.split()[1] for line in answer.stdout.splitlines() if re.match(r"  [A-Z_]+ ", line)}
    table = dict(re.findall(r"^\| `([A-Z_]+)` \|.*\| `?([^`|]+)`? \|$", README, re.MULTILINE))
    assert len(table) >= 5
    assert {name: default for name, default in table.items() if name != "PIGEONHOLE_BUNDLE"}.items() <= told.items()
    assert table.keys() <= told.keys()


def test_a_key_is_made(workshop: Workshop) -> None:
    made = workshop.run(KEYS)
    assert made["key"].startswith("pgh_")
    assert [found["id"] for found in workshop.run(LIST_KEYS)["keys"]] == [made["id"]]


def test_own_data_train_in_one_command(workshop: Workshop) -> None:
    assert workshop.run(TRAIN_OWN, *QUICK)["model"] == "my"


def test_texts_out_of_scope_are_learned_in_one_command(workshop: Workshop) -> None:
    strangers = [
        f"the moon was {colour} over {place}" for colour in ("green", "blue", "red") for place in ("Kiel", "Rome", "Oslo")
    ]
    (workshop.folder / "strangers.csv").write_text("message,queue\n" + "".join(f"{text},none\n" for text in strangers))
    assert workshop.run(TRAIN_SCOPE, *QUICK, "name=scope")["decisions"]["out_of_scope"]["test"]["n"] == 4


def test_long_texts_train_in_one_command(workshop: Workshop) -> None:
    assert workshop.run(TRAIN_LONG, *QUICK, "name=long", "model.max_length=16", "model.window_overlap=4")["model"] == "long"


def test_several_labels_train_in_one_command(workshop: Workshop) -> None:
    printed = workshop.run(TRAIN_SEVERAL, *QUICK)
    assert printed["model"] == "concerns"
    assert printed["test"].keys() >= {"micro_f1", "mean_average_precision"}


def test_check_data_judges_the_file(workshop: Workshop) -> None:
    assert isinstance(workshop.run(CHECK), dict)


def test_labels_are_renamed_and_retired_as_they_are_read(workshop: Workshop) -> None:
    (workshop.folder / "labels.yaml").write_text("rename: {billing: invoices}\nretire: [refund]\n")
    labels = workshop.run(CHECK_TAXONOMY)["labels"]
    assert "invoices" in labels
    assert not {"billing", "refund"} & labels.keys()


def test_labels_are_doubted_in_a_file_that_is_a_patch(workshop: Workshop) -> None:
    assert workshop.run(LABEL_ERRORS, "model=tiny")["review"] == "label-errors.csv"
    assert workshop.run(CHECK, "data.patch=label-errors.csv")["patch"]["kept"] == 0


def test_a_bundle_is_evaluated_on_another_file(workshop: Workshop, trained: dict[str, Any]) -> None:
    printed = workshop.run(EVALUATE.replace("BUNDLE", trained["bundle"]))
    assert printed["bundle"] == trained["bundle"]
    assert printed.keys() >= {"test", "baselines", "seconds"}
    assert workshop.run(EVALUATE_FP32.replace("BUNDLE", trained["bundle"]))["precision"] == "fp32"


def test_a_candidate_is_judged(workshop: Workshop, trained: dict[str, Any]) -> None:
    assert isinstance(workshop.run(PROMOTE.replace("BUNDLE", trained["bundle"]), codes=(0, 4)), dict)


def test_a_second_version_is_rolled_back_and_a_finished_run_is_kept(workshop: Workshop, trained: dict[str, Any]) -> None:
    second = workshop.run(RESUMABLE, *QUICK, "seed=1")
    assert second["alias"] == "candidate"
    workshop.run(PROMOTE.replace("BUNDLE", second["version"]), "force=true")
    assert workshop.run(ROLLBACK, "name=tickets")["to"] == trained["version"]
    with pytest.raises(AssertionError, match="holds a finished run"):
        workshop.run(RESUMABLE)


@pytest.mark.usefixtures("served")
def test_the_log_is_compacted(workshop: Workshop) -> None:
    assert isinstance(workshop.run(COMPACT), dict)


@pytest.mark.usefixtures("served")
def test_the_log_forgets(workshop: Workshop) -> None:
    assert workshop.run(ERASE)["records"] == 0
    assert workshop.run(ERASE_OLD)["records"] == 0
