"""A bundle on labelled rows: metrics with intervals, baselines beside them, slices, pictures, a report. Imports no torch."""
