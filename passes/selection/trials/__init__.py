"""Trials: what the loss would be without some units, found without rewriting the graph."""
