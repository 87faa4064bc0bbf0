"""The gate: a candidate against production on one frozen set, and a verdict with reasons. Imports no torch."""
