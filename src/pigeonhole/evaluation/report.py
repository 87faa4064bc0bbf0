"""What an evaluation says to people: a table for the terminal, a Markdown page for everybody else."""

from collections.abc import Mapping
from typing import Any

MEASURES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "ece": "calibration error"}
OF_SEVERAL_LABELS = {
    "accuracy": "all labels right",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "mean_average_precision": "mean average precision",
    "ece": "calibration error",
}
BASELINES = {"tfidf": "TF-IDF + logistic regression", "majority": "most frequent label"}


def table(result: Mapping[str, Any], worst: int = 5) -> str:
    """Lines for the terminal: the model beside its baselines, and the labels that it does worst."""
    test = result["test"]
    measures = measures_of(test)
    lines = [f"{'':30} " + " ".join(f"{said:>22}" for said in measures.values())]
    for name, found in _models(result).items():
        lines.append(f"{name:30} " + " ".join(f"{with_interval(found, measure):>22}" for measure in measures))
    lines.append(f"on {test['n']:,} rows of {result['data']}; brackets hold 95 % intervals")
    lines.append(f"baselines fitted on {result['baselines']['fitted_on']}")
    poor = [(label, found) for label, found in _worst_first(test["per_class"]) if found["f1"] < 1][:worst]
    if poor:
        lines.append(
            "worst labels: " + ", ".join(f"{label} (F1 {found['f1']:.2f} of {found['support']})" for label, found in poor)
        )
    return "\n".join(lines)


def markdown(result: Mapping[str, Any]) -> str:
    """The page `report.md`; the two pictures are expected beside it."""
    test = result["test"]
    title = f"# Evaluation of {result['model']} {result['version']} ({result['precision']})"
    facts = f"{test['n']:,} rows of `{result['data']}`; brackets hold 95 % intervals."
    fitted = f"The baselines were fitted on {result['baselines']['fitted_on']}."
    warnings = [f"**Mind:** {warning}" for warning in result["warnings"]]
    measures = measures_of(test)
    models = [[name, *(with_interval(found, measure) for measure in measures)] for name, found in _models(result).items()]
    slices = [
        [_cell(name), str(found["n"]), f"{found['accuracy']:.3f} {_brackets(found['interval'])}"]
        for name, found in result["slices"].items()
    ]
    labels = [[f"`{_cell(label)}`", *_label_cells(found)] for label, found in _worst_first(test["per_class"])]
    parts = [
        title,
        facts + " " + fitted,
        *warnings,
        _markdown_table(["", *measures.values()], models),
        f"Negative log likelihood {test['negative_log_likelihood']:.3f}, Brier score {test['brier']:.3f}.",
        "## By length, language and slices of your own",
        _markdown_table(["slice", "rows", "accuracy"], slices),
        "## By label, worst first",
        _markdown_table(["label", "rows", "precision", "recall", "F1"], labels),
        "## Pictures",
        "![Label by label](labels.png)" if measures is OF_SEVERAL_LABELS else "![Confusion matrix](confusion_matrix.png)",
        "![Reliability diagram](reliability.png)",
    ]
    return "\n\n".join(parts) + "\n"


def measures_of(test: Mapping[str, Any]) -> Mapping[str, str]:
    """What is shown of a model's metrics, and what it is called."""
    return OF_SEVERAL_LABELS if "micro_f1" in test else MEASURES


def _models(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        f"this model ({result['precision']})": result["test"],
        **{said: result["baselines"][key] for key, said in BASELINES.items()},
    }


def _worst_first(per_class: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Labels that occur in the rows, by F1."""
    return sorted(
        ((label, found) for label, found in per_class.items() if found["support"]), key=lambda item: (item[1]["f1"], item[0])
    )


def _label_cells(found: Mapping[str, Any]) -> list[str]:
    figures = (f"{found[name]:.2f} {_brackets(found['intervals'][name], 2)}" for name in ("precision", "recall", "f1"))
    return [str(found["support"]), *figures]


def with_interval(found: Mapping[str, Any], measure: str) -> str:
    return f"{found[measure]:.3f} {_brackets(found['intervals'][measure])}"


def _brackets(interval: list[float], digits: int = 3) -> str:
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def _cell(text: str) -> str:
    """A label that is safe inside a table's code span."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())
