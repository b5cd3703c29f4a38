"""Scoring passes: how much each unit matters."""
