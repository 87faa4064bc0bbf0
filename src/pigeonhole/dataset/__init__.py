"""Rows in: read under one strict policy, checked, split. Knows nothing of models; imports no torch."""
