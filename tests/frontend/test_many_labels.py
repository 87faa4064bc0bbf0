"""150 labels, some of them in Arabic or with markup, on the pages that count, review and compare them."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from streamlit.testing.v1 import AppTest
from tests.frontend.conftest import both_services
from tests.keyword_bundle import keyword_bundle

from pigeonhole.registry import Registry

OpenPage = Callable[..., AppTest]
WORDS = {f"word{number}": f"label *{number}* <b>" if number % 2 else f"تسمية {number}" for number in range(150)}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("many")
    held_out = [(f"a text with {word} {number}", label) for word, label in WORDS.items() for number in range(2)]
    bundle = keyword_bundle(folder / "bundle", "v1", WORDS, held_out=held_out)
    registry = Registry(str(folder / "registry"))
    registry.publish(bundle.folder, bundle.manifest)
    registry.set_alias("keywords", "production", "v1", "first", expected=None)
    with both_services(registry.url, folder) as (api, drift):
        texts = [f"أين {word} الآن" for word in WORDS]
        httpx.post(f"{api}/predict", json={"texts": texts}, timeout=60).raise_for_status()
        yield api, drift


@pytest.mark.parametrize("page", ["review", "model", "traffic"])
def test_a_page_holds_150_labels_in_two_directions(open_page: OpenPage, services: tuple[str, str], page: str) -> None:
    api, drift = services
    app = open_page(api, page, drift=drift)
    assert not app.exception
    assert not app.error
    assert "<b>" not in "".join(str(found.value) for found in (*app.markdown, *app.caption))


def test_a_number_behind_an_arabic_label_stands_behind_it(open_page: OpenPage, services: tuple[str, str]) -> None:
    """Without isolation (U+2068, U+2069) a reader sees the 11.9 % before the 122 of the label."""
    api, drift = services
    app = open_page(api, "review", drift=drift)
    assert any("Model: \u2068" in found.value and "\u2069, " in found.value for found in app.caption)
