from pathlib import Path

import pytest

from pigeonhole.cloud.project import Project, read_project, read_yaml, substitute
from pigeonhole.errors import ConfigError

PROJECT = Project("some-project", "europe-west4")


def test_a_project_and_a_region_give_every_name() -> None:
    found = read_project({"PIGEONHOLE_PROJECT": "some-project", "PIGEONHOLE_REGION": "europe-west4"})
    assert found == PROJECT
    assert found.registry == "gs://some-project-pigeonhole/registry"
    assert found.log == "gs://some-project-pigeonhole/log"
    assert found.account("serve") == "pigeonhole-serve@some-project.iam.gserviceaccount.com"
    assert found.image("serve", "a" * 40) == f"europe-west4-docker.pkg.dev/some-project/pigeonhole/serve:{'a' * 40}"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "PIGEONHOLE_PROJECT=''"),
        ({"PIGEONHOLE_PROJECT": "Some Project", "PIGEONHOLE_REGION": "europe-west4"}, "PIGEONHOLE_PROJECT='Some Project'"),
        ({"PIGEONHOLE_PROJECT": "p" * 31, "PIGEONHOLE_REGION": "europe-west4"}, f"PIGEONHOLE_PROJECT='{'p' * 31}'"),
        ({"PIGEONHOLE_PROJECT": "some-project"}, "PIGEONHOLE_REGION=''"),
        ({"PIGEONHOLE_PROJECT": "some-project", "PIGEONHOLE_REGION": "europe"}, "PIGEONHOLE_REGION='europe'"),
    ],
)
def test_a_variable_that_cannot_be_right_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_project(environment)


@pytest.mark.parametrize("tag", ["latest", "", "v1", "A" * 40, "0123456789abcdef"])
def test_a_tag_that_is_no_commit_is_refused(tag: str) -> None:
    with pytest.raises(ConfigError, match=r"expected the commit .* all 40 hexadecimal digits or its first 7 to 12"):
        PROJECT.image("serve", tag)


def test_a_substitution_without_a_value_is_named(tmp_path: Path) -> None:
    assert substitute("a ${B} c", {"B": "b"}) == "a b c"
    file = tmp_path / "file.yaml"
    file.write_text("image: ${IMAGE}\n")
    assert read_yaml(file, {"IMAGE": "x"}) == {"image": "x"}
    with pytest.raises(ConfigError, match=r"no value for \$\{IMAGE\}"):
        read_yaml(file, {})
