"""Rewrite passes: carry out a plan on the graph."""
