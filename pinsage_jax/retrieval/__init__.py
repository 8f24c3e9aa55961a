"""Retrieval: exact and approximate nearest neighbors, ranks, and related items."""
