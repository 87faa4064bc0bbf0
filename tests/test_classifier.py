import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from pigeonhole.bundle import MANIFEST, Bundle, Manifest, open_bundle, seal
from pigeonhole.classifier import Classifier, Encoder, Encoding, session_options
from pigeonhole.decision import softmax
from pigeonhole.errors import BundleError, InferenceError

TEXTS = [
    "where is my parcel",
    "no",
    "the invoice has not changed since monday and nobody answers",
    "I asked about the password and then about the courier and then about the receipt, and nobody ever answers me at all",
    "¿¡ qué 谢谢 ?!",
]


@pytest.fixture
def classifier(sealed_bundle: Path) -> Classifier:
    return Classifier.open(open_bundle(str(sealed_bundle)))


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], None], file: str = "model.int8.onnx") -> None:
    """Change the model and seal again, as a broken exporter would."""
    model = onnx.load(folder / file)
    change(model)
    onnx.save(model, folder / file)
    seal(folder, msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest))


def test_the_answer_names_the_most_probable_label(classifier: Classifier) -> None:
    for found in classifier.predict(TEXTS):
        assert found.label == classifier.labels[found.label_id]
        assert found.score == found.probabilities.max() == found.probabilities[found.label_id]
        assert found.probabilities.sum() == pytest.approx(1)
        assert found.logits.shape == (3,)
        assert found.embedding.shape == (32,)


def test_probabilities_are_the_softmax_of_the_logits_over_the_temperature(classifier: Classifier) -> None:
    found = classifier.predict(["where is my invoice"])[0]
    powers = np.exp(found.logits.astype(np.float64) / classifier.manifest.temperature)
    assert found.probabilities == pytest.approx(powers / powers.sum())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_text_gets_the_same_answer_alone_and_in_any_company(sealed_bundle: Path, precision: str) -> None:
    classifier = Classifier.open(open_bundle(str(sealed_bundle)), "int8" if precision == "int8" else "fp32")
    together = classifier.predict(TEXTS * 20)
    for number, text in enumerate(TEXTS):
        alone = classifier.predict([text])[0]
        for found in together[number :: len(TEXTS)]:
            assert np.array_equal(found.logits, alone.logits)
            assert np.array_equal(found.embedding, alone.embedding)
            assert found.score == alone.score


def test_texts_that_are_one_to_the_model_pass_through_it_once(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS, *map(str.upper, TEXTS), "another text", TEXTS[0]]  # the tiny tokenizer lowers every letter
    expected = classifier.predict(texts)
    forward, passed = classifier._forward, []

    def count(encodings: Sequence[Encoding]) -> Any:
        passed.append(len(encodings))
        return forward(encodings)

    monkeypatch.setattr(classifier, "_forward", count)
    found = classifier.predict_once(texts)
    assert passed == [len(TEXTS) + 1]
    assert [said.label for said in found] == [said.label for said in expected]
    assert all((mine.logits == theirs.logits).all() for mine, theirs in zip(found, expected, strict=True))
    assert [said.n_tokens for said in found] == [said.n_tokens for said in expected]


def test_no_texts_get_no_answers(classifier: Classifier) -> None:
    assert classifier.predict_once([]) == []
    assert classifier.predict([]) == []


def test_a_text_longer_than_max_length_is_cut_and_says_so(classifier: Classifier) -> None:
    long, short = classifier.predict(["parcel " * 500, "parcel"])
    assert long.truncated
    assert long.n_tokens == classifier.manifest.max_length
    assert not short.truncated


def test_control_tokens_in_a_text_are_read_as_text(sealed_bundle: Path) -> None:
    tokenizer = Tokenizer.from_file(str(sealed_bundle / "tokenizer.json"))
    encoder = Encoder(tokenizer, 32)
    separator = tokenizer.token_to_id("[SEP]")
    assert separator is not None
    ids = encoder.encode(["parcel [SEP] invoice"])[0].input_ids
    assert ids.count(separator) == 1
    assert ids[-1] == separator


def test_unknown_tokens_are_counted(classifier: Classifier) -> None:
    unknown, known = classifier.predict(["谢谢 谢谢", "parcel"])
    assert unknown.unknown_tokens > 0
    assert known.unknown_tokens == 0


def test_a_score_below_the_labels_threshold_is_for_review(tiny_bundle: Path) -> None:
    manifest = msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest)
    manifest = msgspec.structs.replace(manifest, temperature=1.0, vector_scaling=None, accept_score=None)  # a score under 1
    seal(tiny_bundle, manifest)
    score = Classifier.open(open_bundle(str(tiny_bundle))).predict(["no"])[0].score
    for threshold, decision in ((score, "accept"), ((1 + score) / 2, "review")):
        seal(tiny_bundle, msgspec.structs.replace(manifest, thresholds=dict.fromkeys(manifest.labels, threshold)))
        assert Classifier.open(open_bundle(str(tiny_bundle))).predict(["no"])[0].decision == decision


def test_softmax_of_huge_logits_is_finite() -> None:
    assert softmax(np.array([1e4, 0.0])) == pytest.approx([1, 0])


def test_a_precision_that_is_not_there_is_refused_with_those_that_are(tiny_bundle: Path) -> None:
    manifest = msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest)
    (tiny_bundle / "model.int8.onnx").unlink()
    seal(tiny_bundle, msgspec.structs.replace(manifest, models={"fp32": "model.onnx"}, served="fp32"))
    with pytest.raises(BundleError, match="has no int8 model; it has fp32"):
        Classifier.open(open_bundle(str(tiny_bundle)), "int8")


def test_weights_that_are_not_numbers_are_refused_at_load(tiny_bundle: Path) -> None:
    def fill(model: onnx.ModelProto) -> None:
        bias = next(found for found in model.graph.initializer if found.name == "head.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float32), "head.bias"))

    change_graph(tiny_bundle, fill)
    with pytest.raises(BundleError, match=r"model\.int8\.onnx: .*not numbers"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_logits_that_are_not_numbers_are_an_error_not_an_answer(tiny_bundle: Path) -> None:
    def fill(model: onnx.ModelProto) -> None:
        bias = next(found for found in model.graph.initializer if found.name == "head.bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(3, np.inf, np.float32), "head.bias"))

    change_graph(tiny_bundle, fill)
    with pytest.raises(InferenceError, match="not numbers"):
        Classifier.load(open_bundle(str(tiny_bundle))).predict(["a"])


def test_a_head_of_another_size_is_refused(tiny_bundle: Path) -> None:
    def widen(model: onnx.ModelProto) -> None:
        for name, shape in (("head.weight", (32, 5)), ("head.bias", (5,))):
            found = next(found for found in model.graph.initializer if found.name == name)
            found.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.float32), name))
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5

    change_graph(tiny_bundle, widen)
    with pytest.raises(BundleError, match=r"gives 5 logits, the manifest has 3 labels"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_other_weights_do_not_give_the_golden_answers(tiny_bundle: Path) -> None:
    def shift(model: onnx.ModelProto) -> None:
        bias = next(found for found in model.graph.initializer if found.name == "head.bias")
        moved = numpy_helper.to_array(bias) + np.array([5, 0, 0], np.float32)
        bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), "head.bias"))

    change_graph(tiny_bundle, shift)
    with pytest.raises(BundleError, match=r"answers golden probe \d 5 off its logits"):
        Classifier.open(open_bundle(str(tiny_bundle)))


@pytest.mark.parametrize(("sealed_noise", "opens"), [(0.2, True), (0.05, False), (0.7, False)])
def test_int8_may_be_rounded_anew_by_another_cpu_but_not_be_farther_from_fp32_or_nearer(
    sealed_bundle: Path, tiny_bundle: Path, sealed_noise: float, opens: bool
) -> None:
    """Each logit is 0.2 from fp32's; those that were sealed on the other CPU are so on other sides."""
    golden = msgspec.json.decode((tiny_bundle / "golden.json").read_bytes())
    sides = np.random.default_rng(0).choice([-1, 1], (2, len(golden), 3))
    here = Classifier.open(open_bundle(str(sealed_bundle))).predict([probe["text"] for probe in golden])
    for number, found in enumerate(here):
        fp32 = found.logits + 0.2 * sides[0, number]
        golden[number]["logits"] = {"fp32": fp32.tolist(), "int8": (fp32 + sealed_noise * sides[1, number]).tolist()}
    (tiny_bundle / "golden.json").write_bytes(msgspec.json.encode(golden))
    seal(tiny_bundle, msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest))
    bundle = open_bundle(str(tiny_bundle))
    if opens:
        assert Classifier.open(bundle).precision == "int8"
    else:
        with pytest.raises(BundleError, match=rf"answers golden probe \d {0.2 + sealed_noise:g} off its logits \(at most 0\.1\)"):
            Classifier.open(bundle)
    with pytest.raises(BundleError, match=r"model\.onnx answers golden probe \d .* \(at most 0\.001\)"):
        Classifier.open(bundle, "fp32")


def test_a_graph_with_other_inputs_is_refused(tiny_bundle: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["b", "t"]))

    change_graph(tiny_bundle, rename)
    with pytest.raises(BundleError, match=r"has inputs .*token_type_ids.*, expected"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_a_graph_from_the_future_is_refused(tiny_bundle: Path) -> None:
    def jump(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 999

    change_graph(tiny_bundle, jump)
    with pytest.raises(BundleError, match=r"model\.int8\.onnx cannot be loaded"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_a_graph_that_fails_when_it_runs_is_refused_at_load(tiny_bundle: Path) -> None:
    def shrink(model: onnx.ModelProto) -> None:
        name = "words"
        found = next(found for found in model.graph.initializer if found.name == name)
        found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found)[:3], name))

    change_graph(tiny_bundle, shrink)
    with pytest.raises(BundleError, match=r"model\.int8\.onnx does not run"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def count_for_ever(model: onnx.ModelProto) -> None:
    """A loop of 10^12 rounds stands between the logits and their output."""
    scalars = {"i": TensorProto.INT64, "go_on": TensorProto.BOOL, "before": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in scalars.items()]
    outputs = [
        helper.make_tensor_value_info("still", TensorProto.BOOL, []),
        helper.make_tensor_value_info("after", TensorProto.FLOAT, []),
    ]
    steps = [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Identity", ["before"], ["after"])]
    constants = {"rounds": np.array(10**12), "yes": np.array(True), "nought": np.array(0, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name == "logits":
                node.output[number] = "early_logits"
    body = helper.make_graph(steps, "round", inputs, outputs)
    model.graph.node.append(helper.make_node("Loop", ["rounds", "yes", "nought"], ["never"], body=body))
    model.graph.node.append(helper.make_node("Add", ["early_logits", "never"], ["logits"]))


def test_a_graph_that_never_ends_is_refused_at_load(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pigeonhole.classifier.GOLDEN_DEADLINE_S", 0.2)
    change_graph(tiny_bundle, count_for_ever)
    with pytest.raises(BundleError, match=r"model\.int8\.onnx does not run"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_a_bundle_that_is_swapped_while_it_is_opened_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    verified = open_bundle(str(tiny_bundle))
    another = Path(shutil.copytree(tiny_bundle, tmp_path / "another"))
    manifest = msgspec.json.decode((another / MANIFEST).read_bytes(), type=Manifest)
    seal(another, msgspec.structs.replace(manifest, labels=manifest.labels[::-1]))
    tiny_bundle.rename(tmp_path / "away")
    another.rename(tiny_bundle)
    with pytest.raises(BundleError, match="another bundle took its place while it was opened"):
        Classifier.open(verified)


def test_a_tokenizer_that_is_none_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / "tokenizer.json").write_text("{}")
    seal(tiny_bundle, msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest))
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_a_tokenizer_whose_library_panics_is_refused(tiny_bundle: Path) -> None:
    file = tiny_bundle / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    file.write_text(json.dumps(tokenizer))
    seal(tiny_bundle, msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest))
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_a_token_without_an_embedding_is_refused_at_load(tiny_bundle: Path) -> None:
    """A text with such a word would end in onnxruntime's own error."""
    tokenizer = json.loads((tiny_bundle / "tokenizer.json").read_bytes())
    tokenizer["model"]["vocab"]["zebra"] = len(tokenizer["model"]["vocab"])
    (tiny_bundle / "tokenizer.json").write_text(json.dumps(tokenizer))
    seal(tiny_bundle, msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest))
    with pytest.raises(BundleError, match=r"model\.int8\.onnx does not run: .*out of data bounds"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_golden_answers_of_the_served_precision_are_required(tiny_bundle: Path) -> None:
    golden = msgspec.json.decode((tiny_bundle / "golden.json").read_bytes())
    only_fp32 = [{"text": probe["text"], "logits": {"fp32": probe["logits"]["fp32"]}} for probe in golden]
    (tiny_bundle / "golden.json").write_bytes(msgspec.json.encode(only_fp32))
    seal(tiny_bundle, msgspec.json.decode((tiny_bundle / MANIFEST).read_bytes(), type=Manifest))
    with pytest.raises(BundleError, match=r"golden\.json has no answers for int8"):
        Classifier.open(open_bundle(str(tiny_bundle)))


def test_sums_of_int8_are_exact_on_a_cpu_without_vnni_where_a_bundle_does_not_say_that_they_fit() -> None:
    """There they are added in pairs of 16 bits by default, and the largest are cut off; so it fails on such a CPU only."""
    weight = np.where(np.indices((64, 16)).sum(axis=0) % 3 == 0, -127, 127).astype(np.int8)
    constants = {"weight": weight, "one": np.float32(1), "scale": np.ones(16, np.float32), "zero": np.uint8(0)}
    graph = helper.make_graph(
        [helper.make_node("MatMulIntegerToFloat", ["x", "weight", "one", "scale", "zero"], ["y"], domain="com.microsoft")],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    x = np.full((8, 64), 255, np.uint8)
    found = ort.InferenceSession(model, session_options(1, sums_fit=False)).run(["y"], {"x": x})[0]
    assert np.array_equal(found, x.astype(np.int64) @ weight)


def test_a_bundle_that_says_that_its_sums_fit_is_not_slowed_down(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def note(threads: int, *, sums_fit: bool) -> ort.SessionOptions:
        told.append(sums_fit)
        return session_options(threads, sums_fit=sums_fit)

    monkeypatch.setattr("pigeonhole.classifier.session_options", note)
    bundle = open_bundle(str(tiny_bundle))
    Classifier.open(bundle)
    older = seal(tiny_bundle, msgspec.structs.replace(bundle.manifest, int8_sums_fit=False))
    Classifier.open(Bundle(str(tiny_bundle), tiny_bundle, older))
    assert told == [True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_onnxruntime_starts_no_thread_that_tells_of_us(sealed_bundle: Path) -> None:
    """Its telemetry is a thread of its own, which looks up a name of Microsoft's five seconds after the start."""
    lines = [
        "import os, pigeonhole, onnxruntime as ort",
        "options = ort.SessionOptions()",
        "options.intra_op_num_threads = options.inter_op_num_threads = 1",
        f"session = ort.InferenceSession({str(sealed_bundle / 'model.onnx')!r}, options)",
        "print(len(os.listdir('/proc/self/task')))",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", "\n".join(lines)]
    assert subprocess.run(line, env=environment | threads, capture_output=True, text=True, check=True).stdout == "1\n"


def test_outputs_are_found_by_their_names_in_any_order(tiny_bundle: Path) -> None:
    before = Classifier.open(open_bundle(str(tiny_bundle))).predict(["where is my parcel"])[0]

    def swap(model: onnx.ModelProto) -> None:
        first = onnx.ValueInfoProto()
        first.CopyFrom(model.graph.output[0])
        del model.graph.output[0]
        model.graph.output.append(first)

    change_graph(tiny_bundle, swap)
    found = Classifier.open(open_bundle(str(tiny_bundle))).predict(["where is my parcel"])[0]
    assert found.logits.tolist() == before.logits.tolist()
    assert found.embedding.tolist() == before.embedding.tolist()


def test_an_output_without_a_width_is_refused(tiny_bundle: Path) -> None:
    def flatten(model: onnx.ModelProto) -> None:
        axes = numpy_helper.from_array(np.array([0, 1]), "both")
        model.graph.initializer.append(axes)
        name = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = ["wide" if found == name else found for found in node.output]
        model.graph.node.append(helper.make_node("ReduceSum", ["wide", "both"], [name], keepdims=0))
        del model.graph.output[0].type.tensor_type.shape.dim[:]

    change_graph(tiny_bundle, flatten)
    with pytest.raises(BundleError, match=r"model\.int8\.onnx"):
        Classifier.open(open_bundle(str(tiny_bundle)))
