"""What a model costs as a function of its widths."""
