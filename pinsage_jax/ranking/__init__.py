"""Ranking: candidates of several methods in one list, ordered by a small calibrated model."""
