import json
import re
from pathlib import Path

import pytest

from pigeonhole.command import call
from pigeonhole.errors import ConfigError
from pigeonhole.serving.keys import digest_of, new_key, read_keys, run


def test_a_new_key_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    url = str(tmp_path / "keys.json")
    made = run(["new", f"keys={url}", "scopes=metrics,predict", "rate=5", "days=1"])
    assert made is not None
    assert re.fullmatch(f"pgh_{made['id']}_[A-Za-z0-9_-]{{43}}", made["key"])
    (kept,) = read_keys(url).keys
    assert (kept.id, kept.sha256, kept.scopes, kept.rate_per_s) == (made["id"], digest_of(made["key"]), ("predict", "metrics"), 5)
    assert kept.expires_at is not None
    assert (kept.expires_at - kept.created_at).days == 1
    assert made["key"] not in Path(url).read_text()
    assert "sha256" not in made


def test_keys_are_listed_and_revoked_by_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIGEONHOLE_KEYS", str(tmp_path / "keys.json"))
    for arguments in (["new", "days=0"], ["new"]):
        assert call(run, arguments) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["expires_at"] is None
    assert call(run, ["revoke", first["id"]]) == 0
    assert json.loads(capsys.readouterr().out) == {"revoked": first["id"]}
    assert call(run, ["list"]) == 0
    listed = json.loads(capsys.readouterr().out)["keys"]
    assert listed == [{name: value for name, value in second.items() if name != "key"}]


def test_help_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, ["--help"]) == 0
    assert "uv run keys revoke ID" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "cannot do '"),
        (["new", "rate=0"], "rate='0': allowed is a whole number from 1 to 99999"),
        (["new", "days=-1"], "days='-1': allowed is a whole number from 0 to 99999"),
        (["new", "scopes=predict,root"], "scopes='predict,root': allowed are predict, feedback, metrics"),
        (["new", "rate=5", "rate=5"], "an option is given twice"),
        (["new", "scope=predict"], "cannot do 'new scope=predict"),
        (["list"], "there is no list of keys; make one with `uv run keys new keys="),
        (["revoke", "00000000"], "there is no list of keys"),
        (["revoke"], "cannot do 'revoke"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        run([*arguments, f"keys={tmp_path / 'none.json'}"])


def test_a_list_has_to_be_named_has_to_be_one_and_has_to_have_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIGEONHOLE_KEYS", raising=False)
    with pytest.raises(ConfigError, match="no list of keys is named"):
        run(["list"])
    url = str(tmp_path / "keys.json")
    _, made = new_key(url, ("predict",), 1, 0)
    with pytest.raises(ConfigError, match=f"has no key '00000000'; it has {made.id}"):
        run(["revoke", "00000000", f"keys={url}"])
    Path(url).write_text('{"schema_version":1,"keys":[],"more":1}')
    with pytest.raises(ConfigError, match="this is no list of keys"):
        read_keys(url)
