"""`python -m pigeonhole.drift.draw FOLDER`: Evidently's page of FOLDER/reference.npz against FOLDER/window.npz.

The only module that imports Evidently and pandas; a process of its own, so that no service waits for them.
"""

import os
import sys
import warnings
from pathlib import Path

import numpy as np


def draw(folder: Path) -> None:
    """Writes FOLDER/report.html."""
    os.environ["DO_NOT_TRACK"] = "1"  # Evidently reports its use to its makers otherwise
    warnings.simplefilter("ignore")  # its dependencies' deprecations are nobody's business here
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    frames = {}
    for side in ("reference", "window"):
        with np.load(folder / f"{side}.npz") as columns:
            frames[side] = pd.DataFrame(dict(columns))
    numbers = [name for name in frames["reference"].columns if name != "label"]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=["label"])
    datasets = {side: Dataset.from_pandas(frame, data_definition=definition) for side, frame in frames.items()}
    found = Report([DataDriftPreset()]).run(current_data=datasets["window"], reference_data=datasets["reference"])
    found.save_html(str(folder / "report.html"))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
