"""dockerfiles/stack.py really starts compose.yaml, where podman is; here, what it says where it cannot."""

from pathlib import Path

import pytest
from dockerfiles import stack

from pigeonhole.errors import ConfigError


def test_missing_programs_are_named_with_the_line_that_brings_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="podman, runc, buildah, mmdebstrap, bwrap: not here; apt-get install podman runc"):
        stack.run([])


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="profile=x: no argument is known"):
        stack.run(["profile=x"])
