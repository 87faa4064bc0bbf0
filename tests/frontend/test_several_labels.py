"""The pages over versions whose texts may have several labels: what a text has, is given, and another version changes."""

import itertools
from collections.abc import Iterator

import msgspec
import pytest
from streamlit.testing.v1 import AppTest
from tests.frontend.conftest import both_services
from tests.frontend.test_pages import OpenPage, classify
from tests.keyword_bundle import QUEUES, keyword_bundle

from pigeonhole import storage
from pigeonhole.bundle import MANIFEST, REFERENCE, open_bundle, seal
from pigeonhole.classifier import Classifier
from pigeonhole.registry import Registry
from pigeonhole.training.reference import write_reference

TEXTS = ["invoice", "parcel", "login", "invoice parcel", "parcel login", "hello"]
TRUTH = ["billing", "delivery", "account", "billing|delivery", "delivery|account", ""]
WORSE = {**QUEUES, "parcel": "billing"}
"""What a second version takes the words for: a parcel is an invoice."""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("several")
    registry = Registry(str(folder / "registry"))
    for version, words in (("v1", QUEUES), ("v2", WORSE)):
        sealed = folder / version
        manifest = keyword_bundle(sealed, version, words).manifest
        thresholds = dict.fromkeys(manifest.labels, 0.6)
        manifest = msgspec.structs.replace(manifest, task="multi_label", accept_score=0.1, thresholds=thresholds)
        seal(sealed, manifest)
        found = Classifier.open(open_bundle(str(sealed))).predict(TEXTS)
        write_reference(sealed / REFERENCE, TEXTS, TRUTH, found, "multi_label")
        manifest = seal(sealed, manifest)
        registry.publish(sealed, manifest)
        registry.keep_test_texts(manifest.name, version, TEXTS)
    registry.set_alias("keywords", "production", "v1", "the first", expected=None)
    storage.write(storage.join(registry.version_url("keywords", "v0"), MANIFEST), b"{}")
    with both_services(registry.url, folder) as urls:
        yield urls


def test_an_answer_has_all_its_labels(open_page: OpenPage, several: tuple[str, str]) -> None:
    app = classify(open_page(several[0], drift=several[1]), "invoice and parcel")
    assert not app.exception
    assert app.subheader[0].value == "billing, delivery"
    assert app.caption[0].value.startswith("Says which of 3 labels a text has")


def test_each_label_has_four_cells_and_their_texts(open_page: OpenPage, several: tuple[str, str]) -> None:
    app = open_page(several[0], "model", drift=several[1])
    assert not app.exception
    app.selectbox(key="version").select("v2").run()
    errors = app.tabs[1]
    assert errors.caption[1].value == "3 of 6 test texts got other labels than their own."
    cells = errors.dataframe[0].value.set_index("label")
    assert cells.loc["delivery"].to_dict() == {
        "rightly given": 0,
        "missed": 3,
        "given wrongly": 0,
        "rightly not given": 3,
    }
    app.selectbox(key="drill-label").select("delivery").run()
    assert sorted(app.tabs[1].dataframe[1].value["text"]) == ["invoice parcel", "parcel", "parcel login"]
    assert set(app.tabs[1].dataframe[1].value["true label"]) == {"delivery", "billing, delivery", "account, delivery"}
    assert not app.exception


def test_two_versions_are_compared_label_by_label(open_page: OpenPage, several: tuple[str, str]) -> None:
    app = open_page(several[0], "model", drift=several[1])
    compare = app.tabs[3]
    assert compare.subheader[0].value == "Was right, now wrong: 3"
    by_label = compare.dataframe[1].value.set_index("label")
    assert by_label["now wrong"].to_dict() == {"delivery": 3, "billing": 2, "account": 0}
    app.selectbox(key="flips-of").select("billing").run()
    assert app.tabs[3].subheader[0].value == "Was right, now wrong: 2"
    assert sorted(app.tabs[3].dataframe[0].value["text"]) == ["parcel", "parcel login"]


def test_a_version_that_cannot_be_read_is_told_of_beside_the_others(open_page: OpenPage, several: tuple[str, str]) -> None:
    versions = open_page(several[0], "model", drift=several[1]).tabs[2]
    assert versions.dataframe[0].value["version"].tolist() == ["v2", "v1"]
    assert versions.warning[0].value.startswith("Version v0 cannot be read: ")


def test_traffic_counts_texts_and_not_the_labels_that_they_were_given(open_page: OpenPage, several: tuple[str, str]) -> None:
    before = open_page(several[0], "traffic", drift=several[1])
    counted = [app_metric(before, "Texts classified")]
    for text in ("invoice and parcel", "hello"):
        classify(open_page(several[0], drift=several[1]), text)
        counted.append(app_metric(open_page(several[0], "traffic", drift=several[1]), "Texts classified"))
    assert [after - first for first, after in itertools.pairwise(counted)] == [1, 1]


def app_metric(app: AppTest, label: str) -> int:
    return next(int(found.value) for found in app.metric if found.label == label)
