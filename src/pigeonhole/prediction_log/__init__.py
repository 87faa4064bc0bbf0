"""The prediction log: what serving hands to drift, feedback and retraining; a record per text, never lost in silence.

`LogWriter.append` returns when the records are as safe as its durability says; a shipper thread then moves them from the spool
(local files) to `<url>/<kind>/date=YYYY-MM-DD/hour=HH/<writer>-<sequence>.jsonl.gz`. `read_window` reads spool and objects, drops
duplicates and counts what it could not read. None of this knows of HTTP or of models.
"""

from pigeonhole.prediction_log.record import (
    Decision,
    Features,
    Feedback,
    Kind,
    Record,
    TextPolicy,
    is_sampled,
    kept_probabilities,
    kept_text,
    moment_of,
    new_id,
    random_bits,
)
from pigeonhole.prediction_log.sketch import sketch
from pigeonhole.prediction_log.spool import Durability
from pigeonhole.prediction_log.window import Counts, Window, read_window, require_log
from pigeonhole.prediction_log.writer import Backlog, LogWriter, WhenFull

__all__ = [
    "Backlog",
    "Counts",
    "Decision",
    "Durability",
    "Features",
    "Feedback",
    "Kind",
    "LogWriter",
    "Record",
    "TextPolicy",
    "WhenFull",
    "Window",
    "is_sampled",
    "kept_probabilities",
    "kept_text",
    "moment_of",
    "new_id",
    "random_bits",
    "read_window",
    "require_log",
    "sketch",
]
