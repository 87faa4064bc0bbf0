import hashlib
import subprocess
from pathlib import Path

import pytest

from pigeonhole.training import provenance


def git(folder: Path, *arguments: str) -> str:
    known = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    return subprocess.run(["git", *known, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_a_model_is_of_a_commit_and_whether_the_files_were_those_of_the_commit_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    git(tmp_path, "init")
    (tmp_path / "uv.lock").write_text("as it was locked")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = provenance.collect({"seed": 3}, "d" * 64, 3, 2, {"patch_sha256": "p" * 64})
    assert (clean["git_commit"], clean["git_dirty"]) == (git(tmp_path, "rev-parse", "HEAD"), False)
    assert clean["lock_sha256"] == hashlib.sha256(b"as it was locked").hexdigest()
    assert (clean["config"], clean["data_sha256"], clean["seed"], clean["threads"]) == ({"seed": 3}, "d" * 64, 3, 2)
    assert clean["patch_sha256"] == "p" * 64
    (tmp_path / "uv.lock").write_text("changed since")
    assert provenance.collect({}, "", 0, 1)["git_dirty"] is True


def test_outside_a_checkout_the_commit_is_unknown_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "inside")  # a wheel, installed in a checkout of another project
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "of the other project")
    (tmp_path / "inside").mkdir()
    found = provenance.collect({}, "", 0, 1)
    assert (found["git_commit"], found["git_dirty"], found["lock_sha256"]) == (None, None, None)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert provenance.collect({}, "", 0, 1)["git_commit"] is None
