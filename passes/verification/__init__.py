"""Verification passes: prove a rewrite against the masked original."""
