"""The model card (README.md of a bundle), written from the manifest alone."""

from collections.abc import Iterator
from typing import Any

from pigeonhole.bundle import Manifest
from pigeonhole.evaluation.report import measures_of, with_interval

_TEMPLATE = """\
# {name} {version}

A text classifier with {count} labels, made on {created_at} by `train`; `manifest.json` holds every number below and more.

{rows}

Measured on {n} test rows that nothing else has seen; brackets hold 95 % intervals.

## Use

Reads one text of any length{windowing}. {answers}

## Labels

{labels}

## Made from

- encoder: `{pretrained}`
- data: sha256 `{data_sha256}`
- commit: `{commit}`, seed {seed}, {threads} threads
- exported against trained, over {parity_rows} texts not trained on: fp32 logits within {fp32:.1e}, {flips} labels differ{int8}
"""


def write_card(manifest: Manifest) -> str:
    """Markdown."""
    metrics, parity, provenance = manifest.metrics, manifest.parity, manifest.provenance
    measured = {
        "this model (served: " + manifest.served + ")": metrics["test"],
        "TF-IDF + logistic regression": metrics["baselines"]["tfidf"],
        "majority label": metrics["baselines"]["majority"],
    }
    agreement = parity["int8_agreement_with_fp32"]
    return _TEMPLATE.format(
        name=manifest.name,
        version=manifest.version,
        count=len(manifest.labels),
        created_at=manifest.created_at,
        rows="\n".join(_table(measured)),
        n=metrics["test"]["n"],
        windowing=_windowing(manifest),
        answers=_answers(manifest),
        labels="\n".join(_label_line(label, metrics["test"]["per_class"][label]) for label in manifest.labels),
        pretrained=provenance["config"]["model.pretrained"],
        data_sha256=provenance["data_sha256"],
        commit=provenance["git_commit"] or "unknown",
        seed=provenance["seed"],
        threads=provenance["threads"],
        parity_rows=parity["rows"],
        fp32=parity["fp32_max_logit_difference"],
        flips=parity["fp32_label_flips"],
        int8="" if agreement is None else f"; int8{_whether_kept(manifest)} agrees with fp32 on {100 * agreement:.1f} %",
    )


def _windowing(manifest: Manifest) -> str:
    rule = manifest.windowing
    if rule.rule == "truncate":
        return f" and keeps its first {manifest.max_length} tokens"
    merged = "averaged" if rule.rule == "mean" else "merged by the largest for each label"
    return f", in up to {rule.most} windows of {manifest.max_length} tokens; two share {rule.overlap} tokens; logits are {merged}"


def _calibration(manifest: Manifest) -> str:
    if manifest.vector_scaling is not None:
        return "calibrated with a scale and a bias for each label"
    return f"calibrated with temperature {manifest.temperature:.3f}"


def _target(manifest: Manifest) -> str:
    target = manifest.threshold_target
    return "" if target is None else f", fitted so that at least {100 * target.value:g} % of the accepted answers are right"


def _scope(manifest: Manifest) -> str:
    rule = manifest.out_of_scope
    if rule is None:
        return "It always names one of its labels, also for a text that belongs to none of them."
    found = manifest.metrics["decisions"]["out_of_scope"]["test"]
    return (
        f"`out_of_scope`, by {rule.rule.replace('_', ' ')}: it recognises {100 * found['recall']['share']:.0f} % of "
        f"{found['n']} texts that belong to no label."
    )


def _whether_kept(manifest: Manifest) -> str:
    return "" if "int8" in manifest.models else " (left out)"


def _answers(manifest: Manifest) -> str:
    if manifest.task == "multi_label":
        return (
            f"Answers with any number of labels: each one whose probability ({_calibration(manifest)} on\nvalidation rows) is at "
            "least the label's threshold, which these rows set for the best F1. `score` is the probability that the\n"
            f"labels given are right, all of them and no other; below {manifest.accept_score} the decision is `review`."
        )
    return (
        f"Answers with the label, its probability ({_calibration(manifest)} on validation\nrows) and a decision. `accept`: the "
        f"probability reaches the label's threshold{_target(manifest)}; else `review`. {_scope(manifest)}"
    )


def _table(measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    measures = measures_of(next(iter(measured.values())))
    yield f"| | {' | '.join(measures.values())} |"
    yield "|---" * (1 + len(measures)) + "|"
    for name, found in measured.items():
        yield f"| {name} | " + " | ".join(with_interval(found, measure) for measure in measures) + " |"


def _label_line(label: str, found: dict[str, object]) -> str:
    rows = "1 row" if found["support"] == 1 else f"{found['support']} rows"
    return f"- `{label}`: precision {found['precision']:.2f}, recall {found['recall']:.2f} over {rows}"
