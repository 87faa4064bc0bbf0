"""cloudbuild/*.yaml against the type that Cloud Build reads them with, and against what this repository has."""

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud.devtools import cloudbuild_v1
from google.protobuf.json_format import ParseError

from pigeonhole.cloud import deploy

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "cloudbuild").glob("*.yaml"))
CHECKER = Path(sysconfig.get_path("scripts")) / f"check-jsonschema{'.exe' if sys.platform == 'win32' else ''}"
BUILT_IN = {"PROJECT_ID", "COMMIT_SHA"}


def parse(content: Any) -> cloudbuild_v1.Build:
    build: cloudbuild_v1.Build = cloudbuild_v1.Build.from_json(json.dumps(content), ignore_unknown_fields=False)
    ids = [step.id for step in build.steps]
    for step in build.steps:
        assert step.name, f"{step.id} has no image"
        assert {word for word in step.wait_for if word != "-"} <= set(ids), f"{step.id} waits for a step that is not there"
    return build


def unknown_substitutions(text: str) -> set[str]:
    """Names that are used and neither declared in the file nor Cloud Build's own."""
    declared = set(yaml.safe_load(text).get("substitutions", {}))
    return set(re.findall(r"(?<!\$)\$\{?([A-Z_]+)\}?", text)) - declared - BUILT_IN


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def text(request: pytest.FixtureRequest) -> str:
    found: str = request.param.read_text(encoding="utf-8")
    return found


def test_every_file_is_a_build(text: str) -> None:
    assert parse(yaml.safe_load(text)).steps


def test_the_published_schema_takes_every_file_and_refuses_a_planted_fault(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((ROOT / "cloudbuild/images.yaml").read_text().replace("E2_HIGHCPU_8", "E2_HIGHCPU_9"), encoding="utf-8")
    said = subprocess.run(
        [CHECKER, "--builtin-schema", "vendor.cloudbuild", *FILES, wrong], capture_output=True, text=True, check=False
    )
    assert said.returncode == 1
    assert {line.split("::")[0].strip() for line in said.stdout.splitlines() if "::$" in line} == {str(wrong)}


def test_every_substitution_is_declared(text: str) -> None:
    assert unknown_substitutions(text) == set()


def test_no_file_names_a_project_a_region_or_a_tag_that_moves(text: str) -> None:
    assert re.findall(r"(europe|us|asia)-(west|east|north|central)\w*|gs://\w|:latest", text) == []


def faults(text: str) -> list[str]:
    """What no type of Cloud Build's can know: keys, values that a shell would read, variables and commands that are not there."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    found = re.findall(r"WANDB_API_KEY|availableSecrets|secretEnv|versions/latest", text)
    for step in yaml.safe_load(text)["steps"]:
        if step.get("entrypoint") == "bash":
            given = {line.partition("=")[0] for line in step["env"]}
            script = step["args"][-1]
            found += re.findall(r"(?<!\$)\$[\w{]+", script)
            used = set(re.findall(r"\$\$(\w+)", script))
            found += used ^ {name for name in given if name in used or not name.startswith("PIGEONHOLE_")}
            found += re.findall(r"uv run (?!--locked --no-default-groups --group cloud )\S*", script)
            found += [word for word in re.findall(r"\S*\$\$\w+\S*", script) if not re.search(r'="\$\$\w+"$', word)]
            found += set(re.findall(r"uv run --locked --no-default-groups --group cloud (\S+)", script)) - set(scripts)
    return found


def test_no_key_no_open_value_and_no_unknown_command_is_in_a_build(text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ('image="$$COMMIT_SHA"', 'image="$COMMIT_SHA"', "$COMMIT_SHA"),
        ('machine="$$_MACHINE"', 'machine="$$_MACHIN"', "_MACHIN"),
        ("cloud vertex", "cloud vertx", "vertx"),
        (' machine="$$_MACHINE"', "", "_MACHINE"),
        ('machine="$$_MACHINE"', "machine=$$_MACHINE", "machine=$$_MACHINE"),
        ("uv run --locked", "uv run", "uv run --no-default-groups"),
        ("_EXPERIMENT=$_EXPERIMENT", "WANDB_API_KEY=$_EXPERIMENT", "WANDB_API_KEY"),
    ],
)
def test_a_planted_key_value_or_command_is_caught(right: str, wrong: str, told: str) -> None:
    text = (ROOT / "cloudbuild/vertex.yaml").read_text(encoding="utf-8")
    assert right in text
    assert told in faults(text.replace(right, wrong))


def seconds(name: str) -> int:
    build = parse(yaml.safe_load((ROOT / f"cloudbuild/{name}.yaml").read_text(encoding="utf-8")))
    return int(build.timeout.total_seconds())


def test_a_build_that_deploys_is_not_ended_before_the_traffic_is_given_back() -> None:
    """At the worst: a revision, two questions with a token each, the traffic there and back; and five minutes for `uv run`."""
    assert seconds("deploy") >= 3 * deploy.WAIT_S + 2 * (60 + 30) + 300


def test_a_rollback_gives_all_traffic_to_one_revision_and_waits_for_no_answer() -> None:
    (step,) = yaml.safe_load((ROOT / "cloudbuild/rollback.yaml").read_text(encoding="utf-8"))["steps"]
    assert step["args"][:3] == ["run", "services", "update-traffic"]
    assert {"--to-revisions=$_REVISION=100", "--region=$_REGION", "--quiet"} <= set(step["args"])


def test_every_image_is_built_from_its_dockerfile_tried_and_pushed_by_commit() -> None:
    build = yaml.safe_load((ROOT / "cloudbuild/images.yaml").read_text())
    names = sorted(path.stem for path in (ROOT / "dockerfiles").glob("*.dockerfile") if path.stem != "serve_baked")
    steps = {step["id"]: step for step in build["steps"]}
    for name in names:
        assert f"dockerfiles/{name}.dockerfile" in steps[name]["args"]
        assert "linux/amd64" in steps[name]["args"]
        assert steps[f"try-{name}"]["waitFor"] == [name]
        assert {"--read-only", "/tmp"} <= set(steps[f"try-{name}"]["args"])  # as each promises
    assert sorted(build["images"]) == [f"${{_IMAGES}}/{name}:$COMMIT_SHA" for name in names]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("waitFor: [serve]", "waitsFor: [serve]"),
        ("machineType: E2_HIGHCPU_8", "machineType: E2_HIGHCPU_9"),
        ("logging: CLOUD_LOGGING_ONLY", "logging: CLOUD"),
        ("timeout: 2400s", "timeout: forty minutes"),
        ("waitFor: [train]", "waitFor: [trian]"),
        ("name: gcr.io/cloud-builders/docker", "nome: gcr.io/cloud-builders/docker"),
    ],
)
def test_a_planted_fault_is_caught(right: str, wrong: str) -> None:
    text = (ROOT / "cloudbuild/images.yaml").read_text()
    assert right in text
    with pytest.raises((ParseError, AssertionError)):
        parse(yaml.safe_load(text.replace(right, wrong, 1)))


def test_a_substitution_that_is_misspelt_is_caught() -> None:
    text = (ROOT / "cloudbuild/vertex.yaml").read_text()
    assert unknown_substitutions(text.replace("=$_REGION", "=$_REGIO")) == {"_REGIO"}
