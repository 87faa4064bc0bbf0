from pathlib import Path

import msgspec
from tests.keyword_bundle import keyword_bundle, keyword_rows

from pigeonhole.bundle import OutOfScope, open_bundle, seal
from pigeonhole.dataset.read import Row
from pigeonhole.evaluation.labelled import Labelled
from pigeonhole.promotion.measure import Probes, measure


def test_a_text_that_is_told_to_be_out_of_scope_is_not_accepted(tmp_path: Path) -> None:
    """Nothing is for review here: each text is sure enough, and the one without a word of a label is strange."""
    bundle = keyword_bundle(tmp_path / "v1", "v1", weight=6.0)
    thresholds = dict.fromkeys(bundle.manifest.labels, 0.0)
    seal(
        bundle.folder, msgspec.structs.replace(bundle.manifest, thresholds=thresholds, out_of_scope=OutOfScope("max_logit", -1.0))
    )
    rows = Labelled("here", [Row(text, label, line) for line, (text, label) in enumerate(keyword_rows(), 2)], None)
    probes = Probes([], ["the weather is fine", "my invoice of the heart"])
    found = measure([open_bundle(str(bundle.folder))], rows, probes, threads=1, seed=0)[0]
    assert found.refused is not None
    assert found.refused.tolist() == [True, False]
