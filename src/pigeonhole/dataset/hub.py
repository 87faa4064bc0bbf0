"""Data sets of the Hugging Face hub, by `hub://ORG/NAME[@REVISION][:SPLIT]`, streamed; no code that comes with them ever runs."""

import re
from collections.abc import Iterator
from typing import Any

from pigeonhole.errors import DataError

SCHEME = "hub://"
_ADDRESS = re.compile(r"hub://(?P<name>[^:@]+)(?:@(?P<revision>[^:@]+))?(?::(?P<split>[^:@]+))?")


def is_hub(url: str) -> bool:
    return url.startswith(SCHEME)


def records(url: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Column names and record, row by row; class numbers become their names. Raises DataError."""
    address = _ADDRESS.fullmatch(url)
    if address is None:
        raise DataError(f"{url}: expected hub://ORG/NAME, hub://ORG/NAME@REVISION or hub://ORG/NAME:SPLIT")
    import datasets  # 2 s, for those who read the hub only

    try:
        rows = datasets.load_dataset(
            address["name"], revision=address["revision"], split=address["split"] or "train", streaming=True
        )
        names = list(rows.features or next(iter(rows)))
        # of a list of classes, the class
        items = {name: getattr(feature, "feature", feature) for name, feature in (rows.features or {}).items()}
        classes = {name: feature for name, feature in items.items() if isinstance(feature, datasets.ClassLabel)}
        for record in rows:
            for name, feature in classes.items():
                if record[name] is not None:
                    record[name] = feature.int2str(record[name])  # a number, or a list of them
            yield names, record
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{url}: the hub gave no rows: {reason}") from error
