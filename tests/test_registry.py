import datetime
import getpass
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pigeonhole import storage
from pigeonhole.bundle import open_bundle
from pigeonhole.errors import RegistryError, StorageError
from pigeonhole.registry import AliasState, Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(str(tmp_path / "registry"))


@pytest.fixture
def version(registry: Registry, sealed_bundle: Path) -> str:
    """A published version."""
    manifest = open_bundle(str(sealed_bundle)).manifest
    registry.publish(sealed_bundle, manifest)
    return manifest.version


def test_a_published_bundle_opens_from_its_url(registry: Registry, sealed_bundle: Path) -> None:
    manifest = open_bundle(str(sealed_bundle)).manifest
    url = registry.publish(sealed_bundle, manifest)
    assert url == f"file://{registry.version_url('tiny', manifest.version)}"
    assert open_bundle(url).manifest == manifest
    assert registry.models() == ["tiny"]
    assert registry.versions("tiny") == [manifest.version]


def test_a_version_is_never_overwritten(registry: Registry, version: str, sealed_bundle: Path) -> None:
    with pytest.raises(RegistryError, match="versions are never overwritten"):
        registry.publish(sealed_bundle, open_bundle(str(sealed_bundle)).manifest)


def test_a_bundle_is_among_the_versions_where_it_is_the_very_same(registry: Registry, sealed_bundle: Path) -> None:
    manifest = open_bundle(str(sealed_bundle)).manifest
    assert not registry.has(sealed_bundle, manifest)
    url = registry.publish(sealed_bundle, manifest)
    assert registry.has(sealed_bundle, manifest)
    storage.write(storage.join(url, "manifest.json"), b"{}")
    assert not registry.has(sealed_bundle, manifest)


def test_a_half_copied_version_is_not_seen(registry: Registry, version: str) -> None:
    storage.delete(storage.join(registry.version_url("tiny", version), "manifest.json"))
    assert registry.versions("tiny") == []


def test_an_alias_means_the_version_that_it_was_set_to_and_remembers_every_change(registry: Registry, version: str) -> None:
    registry.set_alias("tiny", "production", version, "the first bundle", expected=None, by="ann")
    registry.set_alias("tiny", "production", None, "withdrawn", expected=version, by="bob")
    registry.set_alias("tiny", "production", version, "back", expected=None, by="ann")
    state = registry.alias("tiny", "production")
    assert state.version == version
    assert [(change.version, change.by, change.reason) for change in state.history] == [
        (version, "ann", "the first bundle"),
        (None, "bob", "withdrawn"),
        (version, "ann", "back"),
    ]
    assert registry.resolve("tiny", "production") == registry.version_url("tiny", version)


def test_an_alias_that_was_never_set_lists_the_models_that_are_there(registry: Registry, version: str) -> None:
    with pytest.raises(RegistryError, match="'other' has no production version; models here: tiny"):
        registry.resolve("other", "production")


def test_an_alias_cannot_mean_a_version_that_is_not_there(registry: Registry, version: str) -> None:
    with pytest.raises(RegistryError, match=f"has no version '2020'; it has {version}"):
        registry.set_alias("tiny", "production", "2020", "?", expected=None)


def test_who_expected_another_version_is_told(registry: Registry, version: str) -> None:
    registry.set_alias("tiny", "production", version, "first", expected=None)
    with pytest.raises(RegistryError, match=f"tiny/production is {version}, not None: somebody moved it"):
        registry.set_alias("tiny", "production", version, "again", expected=None)


def test_a_refusal_that_is_noted_meanwhile_stops_no_move(
    registry: Registry, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the alias where it was: nobody moved it."""
    swap = storage.swap

    def swap_second(*arguments: Any) -> bool:
        monkeypatch.undo()
        registry.note_refusal("tiny", "production", "2099", "no", "reject")
        return swap(*arguments)

    monkeypatch.setattr(storage, "swap", swap_second)
    state = registry.set_alias("tiny", "production", version, "first", expected=None)
    assert [change.action for change in state.history] == ["reject", "set"]
    assert registry.alias("tiny", "production") == state


def test_of_racing_writers_that_saw_the_same_state_exactly_one_wins(registry: Registry, version: str) -> None:
    outcomes: list[str] = []

    def move() -> None:
        try:
            registry.set_alias("tiny", "production", version, "race", expected=None)
            outcomes.append("won")
        except RegistryError:
            outcomes.append("told")

    racers = [threading.Thread(target=move) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(outcomes) == ["told"] * 7 + ["won"]
    assert len(registry.alias("tiny", "production").history) == 1


ALIAS = b'{"schema_version": 1, "name": "tiny", "alias": "production", "history": []}'


@pytest.mark.parametrize(
    "data",
    [
        b'{"version": 3}',
        b'{"model": "\xff"}',
        ALIAS.replace(b"1", b"2"),
        ALIAS.replace(b"name", b"zebra"),
        ALIAS[:-1] + b', "zebra": 1}',
    ],
)
def test_an_alias_file_that_is_no_alias_is_refused_with_its_url(registry: Registry, version: str, data: bytes) -> None:
    url = storage.join(registry.url, "models/tiny/aliases/production.json")
    storage.write(url, data)
    with pytest.raises(RegistryError, match=r"production\.json"):
        registry.alias("tiny", "production")


def test_the_history_keeps_from_what_to_what_and_how(registry: Registry, version: str) -> None:
    registry.set_alias("tiny", "production", version, "first", expected=None, by="ann", action="promote")
    (change,) = registry.alias("tiny", "production").history
    assert (change.before, change.version, change.by, change.reason, change.action) == (None, version, "ann", "first", "promote")


def test_a_refusal_is_written_down_and_moves_nothing(registry: Registry, version: str) -> None:
    before = registry.set_alias("tiny", "production", version, "first", expected=None)
    state = registry.note_refusal("tiny", "production", "2099", "HOLD: too few rows", "hold", by="ann")
    assert (state.version, state.changed_at, state.moves) == (version, before.history[0].at, before.moves)
    noted = state.history[-1]
    assert (noted.refused, noted.action, noted.reason, noted.by) == ("2099", "hold", "HOLD: too few rows", "ann")
    assert (noted.before, noted.version) == (version, version)
    registry.set_alias("tiny", "production", None, "away", expected=version)


def test_an_alias_that_others_write_to_without_a_pause_is_told(
    registry: Registry, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "swap", lambda *_: False)
    with pytest.raises(RegistryError, match="others write to it without a pause"):
        registry.note_refusal("tiny", "production", "2099", "no", "reject")
    with pytest.raises(RegistryError, match="others write to it without a pause"):
        registry.set_alias("tiny", "production", version, "first", expected=None)


def test_who_does_not_say_their_name_is_the_user_of_the_process_and_unknown_where_that_has_none(
    registry: Registry, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", lambda: "bob")
    registry.set_alias("tiny", "production", version, "first", expected=None)
    monkeypatch.setattr(getpass, "getuser", nameless)
    state = registry.note_refusal("tiny", "production", "2099", "no", "reject")
    assert [change.by for change in state.history] == ["bob", "unknown"]


def test_refusals_noted_at_one_time_are_all_kept(registry: Registry, version: str) -> None:
    writers = [
        threading.Thread(target=registry.note_refusal, args=("tiny", "production", str(number), "no", "reject"))
        for number in range(6)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(change.refused or "" for change in registry.alias("tiny", "production").history) == list("012345")


def test_a_history_of_before_actions_were_kept_is_still_read(registry: Registry) -> None:
    url = storage.join(registry.url, "models/tiny/aliases/production.json")
    change = b'{"version": "1", "at": "2025-01-01", "by": "ann", "reason": "first"}'
    storage.write(url, b'{"schema_version": 1, "name": "tiny", "alias": "production", "history": [%b]}' % change)
    assert registry.alias("tiny", "production").version == "1"


@pytest.mark.parametrize(
    ("moves", "fallback"),
    [
        ("", None),
        ("a", None),
        ("aa", None),
        ("ab", "a"),
        ("abb", "a"),
        ("aba", "b"),
        ("ab<a", None),
        ("abc<b", "a"),
        ("abc<b<a", None),
        ("abc<a", None),
        ("ab<ac", "a"),
        ("abac<a", "b"),
        ("abc<x", "b"),
        ("ab-", "b"),
        ("-ab", "a"),
    ],
)
def test_a_rollback_leads_to_the_version_before_and_never_to_one_that_was_rolled_back(moves: str, fallback: str | None) -> None:
    history: list[dict[str, Any]] = []
    for place, letter in enumerate(moves):
        if letter != "<":
            action = "rollback" if moves[place - 1 : place] == "<" else "set"
            before = history[-1]["version"] if history else None
            version = None if letter == "-" else letter
            history.append({"version": version, "at": "", "by": "", "reason": "", "before": before, "action": action})
    state = msgspec.convert({"schema_version": 1, "name": "tiny", "alias": "production", "history": history}, AliasState)
    assert state.fallback == fallback


def test_a_version_whose_copying_breaks_off_is_not_seen_and_may_be_published_again(
    registry: Registry, sealed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(str(sealed_bundle)).manifest
    write = storage.write
    for last in range(len(manifest.files)):
        written: list[str] = []

        def break_off(url: str, data: bytes, last: int = last, written: list[str] = written) -> None:
            if len(written) > last:
                raise StorageError(f"{url}: away")
            written.append(url)
            write(url, data)

        with monkeypatch.context() as patched:
            patched.setattr(storage, "write", break_off)
            with pytest.raises(StorageError, match="away"):
                registry.publish(sealed_bundle, manifest)
        assert registry.versions("tiny") == []
    assert open_bundle(registry.publish(sealed_bundle, manifest)).manifest == manifest


def test_a_change_is_dated_in_utc_to_the_millisecond(registry: Registry, version: str) -> None:
    """Which of several models was promoted last goes by it."""
    before = datetime.datetime.now(datetime.UTC)
    state = registry.set_alias("tiny", "production", version, "first", expected=None)
    at = datetime.datetime.fromisoformat(state.changed_at)
    assert at.utcoffset() == datetime.timedelta(0)
    assert before - datetime.timedelta(milliseconds=1) <= at <= datetime.datetime.now(datetime.UTC)
