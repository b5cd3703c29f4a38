"""Latency as a function of the group widths: measured on a device, kept in a table, and predicted for any widths."""
