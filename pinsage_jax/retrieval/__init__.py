"""Retrieval: exact top-k, metrics, baselines, evaluation and related items."""
