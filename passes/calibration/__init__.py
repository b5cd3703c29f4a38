"""Calibration: running real data through a program, and what is measured on the way."""
