"""Training on texts whose telling words lie behind what the model reads at once."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.conftest import tiny_rows, train_arguments, write_rows

from pigeonhole.bundle import Windowing, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.errors import ConfigError
from pigeonhole.training.train import run

FILLER = "as I wrote to you already last week and again on this very morning"


def test_a_model_learns_with_windows_what_it_cannot_see_without(tmp_path: Path) -> None:
    rows = [(f"{number * 37 % 150} {FILLER} {text}", label) for number, (text, label) in enumerate(tiny_rows())]
    data = write_rows(tmp_path / "long.csv", rows)
    found = {}
    for rule in ("truncate", "max"):
        model = ["model=minilm", "trainer.learning_rate=0.0002", "trainer.epochs=1"]
        arguments = [*model, f"model.windowing={rule}", "model.max_length=16", "model.window_overlap=4"]
        found[rule] = run([*train_arguments(tmp_path / rule, data), *arguments])
    assert found["truncate"]["test"]["accuracy"] < 0.5
    assert found["max"]["test"]["accuracy"] > 0.9
    assert found["max"]["parity"]["fp32_max_logit_difference"] < 1e-4
    bundle = open_bundle(found["max"]["bundle"])
    assert bundle.manifest.windowing == Windowing("max", 4, 64)
    reference = pq.read_table(bundle.path("reference.parquet"))
    assert min(reference["n_tokens"].to_pylist()) > 16
    assert not any(reference["truncated"].to_pylist())
    label = Classifier.open(bundle).predict([f"{FILLER * 10} somebody else has got my invoice"])[0].label
    assert label == "billing"
    assert "in up to 64 windows of 16 tokens" in bundle.path("README.md").read_text()


def test_an_overlap_of_more_than_half_a_window_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.window_overlap=33: at most half of model\.max_length=64"):
        run([*train_arguments(tmp_path, tmp_path), "model.windowing=mean", "model.max_length=64", "model.window_overlap=33"])
