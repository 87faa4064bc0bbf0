"""One run's report: what was compared, what each detector says, as JSON and as a page; and where reports are kept.

Reports are numbered from 1 and never overwritten; of two that are kept at once each gets a number of its own.
"""

import html
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pigeonhole import storage
from pigeonhole.dataset.label_sets import join_labels
from pigeonhole.drift.detectors import DETECTORS, Finding, Rows, detect, overall
from pigeonhole.drift.window import Reference, Sample
from pigeonhole.errors import NotFoundError

DRAW_TIMEOUT_S = 180.0
LEFT_OUT = {  # of the counts of a report's rows, in words: what else was in the log, and why a window may be small
    "other_versions": "predictions of other models or versions",
    "unknown_labels": "predictions with a label that the version does not have",
    "torn": "torn lines",
    "unknown_versions": "records of an unknown schema version",
    "misplaced": "records in an hour that is not theirs",
    "damaged_objects": "damaged objects",
    "hours_ahead": "hours that have not begun yet (a writer's clock is ahead)",
}
BLIND_SPOT = (
    "Detectors see texts and answers, not truth: if the same texts come to mean another label, they stay silent. "
    "Only feedback shows that."
)


def compare(
    reference: Reference, sample: Sample, span: tuple[datetime, datetime], *, budget: float, min_rows: int
) -> dict[str, Any]:
    """The report without its number; with too few rows it has a verdict and no figures."""
    began = time.perf_counter()
    findings = detect(reference.rows, sample.rows, budget=budget, min_rows=min_rows)
    verdict = overall(findings)
    return {
        "schema_version": 1,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "model": reference.model,
        "version": reference.version,
        "window": {"start": span[0].isoformat(), "end": span[1].isoformat()},
        "verdict": verdict,
        "alarms": [finding.detector for finding in findings if finding.verdict == "drift"],
        "budget": budget,
        "min_rows": min_rows,
        "rows": {
            "reference": len(reference.rows),
            "window": sample.found,
            "compared": len(sample.rows),
            "other_versions": sample.other_versions,
            "unknown_labels": sample.unknown_labels,
            **{name: value for name, value in sample.counts.items() if name != "records"},
        },
        "accuracy": {"reference": reference.accuracy, "estimated": _estimated_accuracy(reference, findings)},
        "findings": [asdict(finding) for finding in findings],
        "left_out": sorted({detector.name for detector in DETECTORS} - {finding.detector for finding in findings}),
        "blind_spot": BLIND_SPOT,
        "seconds": {"detect": round(time.perf_counter() - began, 3)},
    }


def _estimated_accuracy(reference: Reference, findings: Sequence[Finding]) -> float | None:
    """Of the window: the reference's, less the fall of the mean confidence (Guillory et al. 2021)."""
    effect = next(finding.effect for finding in findings if finding.detector == "estimated_accuracy")
    return None if effect is None else min(1.0, max(0.0, reference.accuracy + effect))


def draw(reference: Reference, sample: Sample) -> tuple[bytes | None, str]:
    """Evidently's page, or None and why there is none: no drawing is worth a report that is not kept.

    In a process of its own: its import takes 10 to 25 s and 400 MB.
    """
    try:
        return _draw(reference, sample)
    except OSError as error:  # no room, or no place, for temporary files; no process to be had
        return None, f"Evidently cannot be asked: {error.strerror or error}"


def _draw(reference: Reference, sample: Sample) -> tuple[bytes | None, str]:
    with tempfile.TemporaryDirectory() as folder:
        for side, rows in (("reference", reference.rows), ("window", sample.rows)):
            np.savez(Path(folder) / f"{side}.npz", **{**_columns(rows), "label": _answers(reference, rows)})
        command = [sys.executable, "-m", "pigeonhole.drift.draw", folder]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=DRAW_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return None, f"Evidently did not end within {DRAW_TIMEOUT_S:.0f} s"
        page = Path(folder) / "report.html"
        if ended.returncode or not page.exists():
            return None, f"Evidently ended with {ended.returncode}: {ended.stderr.strip().splitlines()[-1:]}"
        return page.read_bytes(), "drawn"


def _answers(reference: Reference, rows: Rows) -> NDArray[np.str_]:
    labels = np.array(reference.labels)
    if rows.label_ids.ndim == 1:
        return np.asarray(labels[rows.label_ids])
    return np.array([join_labels(labels[given > 0].tolist()) for given in rows.label_ids])


def _columns(rows: Rows) -> dict[str, Any]:
    return {name: value for name, value in asdict(rows).items() if name not in ("label_ids", "sketches")}


class Reports:
    """The reports at a URL: `000001.json`, `000001.html`, and `000001.evidently.html` where it was drawn."""

    def __init__(self, url: str) -> None:
        self.url = url

    def numbers(self) -> list[int]:
        names = storage.list_files(self.url)
        return [int(name[:6]) for name in names if len(name) == 11 and name[:6].isdigit() and name.endswith(".json")]

    def keep(self, report: dict[str, Any], drawing: bytes | None) -> dict[str, Any]:
        """The report with its number. Raises StorageError."""
        number = max(self.numbers(), default=0) + 1
        while not storage.keep(self._url(number, "json"), _encode(numbered := {**report, "number": number})):
            number += 1
        if drawing is not None:
            storage.write(self._url(number, "evidently.html"), drawing)
        storage.write(self._url(number, "html"), page(numbered).encode())
        return numbered

    def read(self, number: int, kind: str) -> bytes:
        """`kind`: json, html or evidently.html. Raises NotFoundError."""
        try:
            return storage.read(self._url(number, kind))
        except NotFoundError:
            if kind != "html":
                raise
        return page(msgspec.json.decode(self.read(number, "json"))).encode()  # who kept it was killed before the page

    def latest(self) -> int:
        """Raises NotFoundError where there is no report yet."""
        numbers = self.numbers()
        if not numbers:
            raise NotFoundError(f"{self.url}: there is no report yet; POST /runs makes one")
        return max(numbers)

    def history(self, most: int = 100) -> list[dict[str, Any]]:
        """The verdicts of the latest reports, newest first."""
        found = [msgspec.json.decode(self.read(number, "json")) for number in sorted(self.numbers(), reverse=True)[:most]]
        kept = ("number", "at", "version", "verdict", "alarms", "accuracy")
        return [{key: report[key] for key in kept} for report in found]

    def _url(self, number: int, kind: str) -> str:
        return storage.join(self.url, f"{number:06d}.{kind}")


def _encode(report: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #d8dee4 }
th:first-child, td:first-child { text-align: left } .drift { color: #a40e26; font-weight: 600 } .no_drift { color: #116329 }
.too_few_rows { color: #7d4e00 } iframe { width: 100%; height: 60rem; border: 1px solid #d8dee4 }
"""


def page(report: dict[str, Any]) -> str:
    """The report for people: one table, what it cannot see, and Evidently's page in a frame."""
    verdict = report["verdict"]
    rows = report["rows"]
    body = "".join(_row(finding) for finding in report["findings"])
    drawing = (
        f'<iframe title="Evidently" src="{report["number"]}/evidently"></iframe>'
        "<p>Evidently draws with tests of its own, which keep no budget; the verdict is the table's.</p>"
        if report.get("drawing") == "drawn"
        else f"<p>No drawing: {html.escape(str(report.get('drawing', 'not asked for')))}.</p>"
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Drift report {report["number"]}: {verdict}</title><style>{STYLE}</style>
<h1>Drift report {report["number"]}: <span class="{verdict}">{verdict.replace("_", " ")}</span></h1>
<p>{html.escape(report["model"])} {html.escape(report["version"])}, {report["window"]["start"]} to {report["window"]["end"]}:
{rows["window"]} predictions against {rows["reference"]} held-out rows.
A run alarms with a chance of at most {report["budget"]:.1%} where nothing has changed.</p>
<table><tr><th>detector</th><th>verdict</th><th>reference</th><th>window</th><th>effect</th><th>at least</th><th>statistic</th>
<th>threshold</th><th>p</th></tr>{body}</table>
{_left_out(rows)}<p>{html.escape(report["blind_spot"])}</p>
{drawing}
</html>
"""


def _left_out(rows: dict[str, Any]) -> str:
    met = [f"{rows[name]} {words}" for name, words in LEFT_OUT.items() if rows.get(name)]
    return f"<p>Not compared: {', '.join(met)}.</p>\n" if met else ""


def _row(finding: dict[str, Any]) -> str:
    figures = ("reference", "window", "effect", "least_effect", "statistic", "threshold", "p")
    cells = "".join(f"<td>{'-' if finding[name] is None else format(finding[name], '.4g')}</td>" for name in figures)
    verdict = finding["verdict"]
    return f'<tr><td>{finding["detector"]}</td><td class="{verdict}">{verdict.replace("_", " ")}</td>{cells}</tr>\n'
