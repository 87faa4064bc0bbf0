import json
import shutil
from pathlib import Path

import pytest
from tests.keyword_bundle import keyword_bundle

from pigeonhole.bundle import Bundle, open_bundle
from pigeonhole.command import call
from pigeonhole.errors import BundleError, RegistryError
from pigeonhole.promotion.rollback import run
from pigeonhole.registry import Registry


def returned_to(*arguments: str) -> str:
    found = run([*arguments])
    assert found is not None
    return str(found["to"])


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two versions, the later one in production."""
    registry = Registry(str(tmp_path / "registry"))
    before = None
    for version in ("v1", "v2"):
        bundle = keyword_bundle(tmp_path / version, version)
        registry.publish(bundle.folder, bundle.manifest)
        registry.set_alias("keywords", "production", version, "for the test", expected=before, action="promote")
        before = version
    return registry


def test_one_command_returns_to_the_version_before(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, [f"registry={registry.url}", "reason=it calls all parcels invoices"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["from"], found["to"]) == ("v2", "v1")
    assert printed.err == "keywords: production is v1, and was v2\n"
    state = registry.alias("keywords", "production")
    change = state.history[-1]
    assert (state.version, change.before, change.version, change.action) == ("v1", "v2", "v1", "rollback")
    assert change.reason == "it calls all parcels invoices"
    assert change.by
    assert (found["by"], found["at"], found["reason"]) == (change.by, change.at, change.reason)


def test_a_second_rollback_has_nowhere_to_go_and_says_what_there_is(registry: Registry) -> None:
    run([f"registry={registry.url}"])
    with pytest.raises(RegistryError, match=r"nothing was before it; write to=VERSION \(v1, v2\)"):
        run([f"registry={registry.url}"])
    assert returned_to(f"registry={registry.url}", "to=v2") == "v2"


def test_a_damaged_version_is_not_returned_to(registry: Registry) -> None:
    (Path(registry.version_url("keywords", "v1")) / "golden.json").write_text("[]")
    with pytest.raises(BundleError, match=r"golden\.json"):
        run([f"registry={registry.url}"])
    assert registry.alias("keywords", "production").version == "v2"


def test_a_version_that_is_gone_is_named(registry: Registry) -> None:
    shutil.rmtree(registry.version_url("keywords", "v1"))
    with pytest.raises(RegistryError, match="has no version 'v1'; it has v2"):
        run([f"registry={registry.url}"])


def test_the_present_version_is_no_target(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="is v2 already"):
        run([f"registry={registry.url}", "to=v2"])


def test_of_several_models_one_has_to_be_named(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "registry/models/other").mkdir()
    with pytest.raises(RegistryError, match="write name=NAME; models here: keywords, other"):
        run([f"registry={registry.url}"])
    assert returned_to(f"registry={registry.url}", "name=keywords") == "v1"


def test_a_model_that_is_not_there_is_no_target(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="write name=NAME; models here: keywords"):
        run([f"registry={registry.url}", "name=nosuch"])


def test_the_registry_is_that_of_the_environment_where_none_is_named(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIGEONHOLE_REGISTRY", registry.url)
    assert returned_to() == "v1"
    monkeypatch.setenv("PIGEONHOLE_REGISTRY", str(tmp_path / "elsewhere"))
    assert returned_to(f"registry={registry.url}", "to=v2") == "v2"
    with pytest.raises(RegistryError, match="elsewhere: write name=NAME; models here: none"):
        run([])


def test_a_move_by_somebody_else_in_between_is_not_overwritten(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(url: str) -> Bundle:
        registry.set_alias("keywords", "production", "v1", "a colleague", expected="v2")
        return open_bundle(url)

    monkeypatch.setattr("pigeonhole.promotion.rollback.open_bundle", meanwhile)
    with pytest.raises(RegistryError, match="production is v1, not v2: somebody moved it"):
        run([f"registry={registry.url}"])
    assert registry.alias("keywords", "production").history[-1].reason == "a colleague"
