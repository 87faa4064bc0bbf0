import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAINING_ONLY = {
    "accelerate",
    "datasets",
    "hydra-core",
    "omegaconf",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "scipy",
    "torch",
    "transformers",
}


def packages_of(*groups: str) -> set[str]:
    """The names that uv.lock gives to an environment of these groups."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "uv runs these tests and is not to be found"
    chosen = [word for group in groups for word in ("--group", group)]
    line = [uv, "export", "--quiet", "--frozen", "--offline", "--no-hashes", "--no-default-groups", *chosen]
    listing = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", listing, re.MULTILINE))


def test_the_serving_environment_holds_none_of_trainings_libraries() -> None:
    assert {"fastapi", "gcsfs", "onnxruntime", "tokenizers"} <= packages_of("serve")
    assert packages_of("serve") & TRAINING_ONLY == set()
    assert packages_of("train") >= TRAINING_ONLY


def test_the_service_alone_needs_neither_a_clouds_client_nor_cryptography() -> None:
    assert {"fastapi", "onnxruntime", "uvicorn"} <= packages_of("service") < packages_of("serve")
    assert packages_of("service") & {"aiohttp", "cryptography", "gcsfs", "protobuf", "pyjwt"} == set()


def test_a_bare_uv_run_has_every_group_but_rays_whose_serve_would_replace_ours_and_that_of_load_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts_of_serve = {"identity", "service"}
    others = {"load", "score", "score-cluster"}
    assert set(project["tool"]["uv"]["default-groups"]) == set(project["dependency-groups"]) - others - parts_of_serve


def direct() -> list[str]:
    """What pyproject.toml asks for by name, with its bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["project"]["dependencies"], *(line for group in project["dependency-groups"].values() for line in group)]
    return [line for line in asked if isinstance(line, str)]  # not {include-group = ...}


def test_no_package_is_asked_for_twice() -> None:
    names = [re.split(r"[<>=!~ ]", line)[0] for line in direct()]
    assert sorted(names) == sorted(set(names))


def test_the_oldest_version_of_each_package_is_named() -> None:
    """Without it the nightly run with the oldest versions takes the first that was ever published."""
    assert [line for line in direct() if not re.search(r"[>=]=", line)] == []
