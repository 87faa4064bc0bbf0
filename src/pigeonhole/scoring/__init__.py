"""Batch scoring: a table of any size through a bundle, on one core or on a Ray cluster, with the answers that the API gives."""
