"""Slim models of the original's own class: its Python code, with smaller layers in it."""
