"""Measuring: slim models are made at chosen widths and timed."""
