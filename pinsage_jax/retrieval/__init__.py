"""Retrieval by inner product: top-k (exact, approximate), ranks, filters and related items."""
