"""Pigeonhole trains, serves, watches and retrains text classifiers."""

import os

# From 1.31 on, onnxruntime tells Microsoft of itself on Linux too: seconds after a start, and once more before a process may end
# (5 to 10 s where the name cannot be looked up). It reads this while it is loaded; its disable_telemetry_events() comes too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
