"""From rows to a bundle: the only room that knows torch."""
