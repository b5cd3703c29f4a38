"""Passes and what runs them: declarations, text, the two managers and their observers."""
