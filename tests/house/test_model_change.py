"""The lines of model-change.yaml, run by bash as GitHub runs them: the real gate and report on a registry of two versions.

What it cannot show: the event, the identity, the comment on GitHub. `gh` and `uv` only write down and hand on.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.keyword_bundle import QUEUES, keyword_bundle, keyword_rows

from pigeonhole.registry import Registry

WORKFLOW = Path(__file__).parents[2] / ".github/workflows/model-change.yaml"
MISTAKEN = {**QUEUES, "charge": "delivery", "courier": "account"}
# These models know words as they are written only, and have no rows of their own.
HANDED_ON = """#!/bin/bash
shift 2; name=$1; shift
case $name in promote) set -- "$@" gate.behaviour_floor=0;; esac
exec {scripts}/$name "$@" data.path={rows}
"""

needs_bash = pytest.mark.skipif(
    not shutil.which("jq") or sys.platform == "win32",
    reason="needs what .ci/tools installs" if sys.platform == "linux" else "needs Linux",
)


def run_steps(folder: Path, registry: Registry) -> list[int]:
    """The exit codes of the steps that judge, report and comment."""
    programs = {
        "uv": HANDED_ON.format(scripts=Path(sys.executable).parent, rows=folder / "rows.csv"),
        "gh": f'#!/bin/bash\necho "$@" > {folder}/told; cat artefacts/verdict.md >> {folder}/told\n',
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    job = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["gate"]
    variables = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PIGEONHOLE_REGISTRY": registry.url,
        "MODEL": "keywords",
        "VERSION": "v2",
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "GITHUB_REPOSITORY": "owner/name",
        "GITHUB_SHA": "abc",
    }
    steps = [step for step in job["steps"] if step.get("name")]
    lines = [["bash", "-eo", "pipefail", "-c", step["run"]] for step in steps]
    return [subprocess.run(line, cwd=folder, env=variables, check=False).returncode for line in lines]


@needs_bash
@pytest.mark.parametrize(
    ("before", "after", "codes", "production", "said"),
    [(MISTAKEN, QUEUES, [0, 0, 0], "v2", "PROMOTE"), (QUEUES, MISTAKEN, [4, 0, 0], "v1", "REJECT")],
    ids=["better", "worse"],
)
def test_a_candidate_moves_the_alias_or_fails_the_job_and_both_are_commented_on(
    before: dict[str, str], after: dict[str, str], codes: list[int], production: str, said: str, tmp_path: Path
) -> None:
    rows = "".join(f"{text},{label}\n" for text, label in keyword_rows())
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    registry = Registry(str(tmp_path / "registry"))
    for version, words in (("v1", before), ("v2", after)):
        bundle = keyword_bundle(tmp_path / version, version, words, weight=6.0)
        registry.publish(bundle.folder, bundle.manifest)
    registry.set_alias("keywords", "production", "v1", "for the test", expected=None)
    assert run_steps(tmp_path, registry) == codes
    assert registry.alias("keywords", "production").version == production
    assert json.loads((tmp_path / "artefacts/verdict.json").read_text())["decision"] == said
    told = (tmp_path / "told").read_text()
    assert told.startswith("api repos/owner/name/commits/abc/comments --field body=@artefacts/verdict.md")
    assert "### keywords v2" in told
    assert said in told
    assert (tmp_path / "artefacts/report/report.md").read_text() in told
    assert (tmp_path / "summary").read_text() in told
