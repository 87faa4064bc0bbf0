# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["infinity-emb[server,torch]==0.0.78", "click==8.1.8", "transformers==4.57.6"]
# ///
"""infinity over the save_pretrained folder TWIN, on torch, which is its engine for a CPU. PORT."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    command = [str(Path(sys.executable).with_name("infinity_emb")), "v2", "--model-id", os.environ["TWIN"], "--engine", "torch"]
    more = ["--device", "cpu", "--no-bettertransformer", "--served-model-name", "classify", "--port", os.environ["PORT"]]
    os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    os.execv(command[0], [*command, *more])  # noqa: S606  its server wants to be started by its own command
