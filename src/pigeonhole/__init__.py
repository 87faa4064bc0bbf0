"""Pigeonhole trains, serves, watches and retrains text classifiers."""
