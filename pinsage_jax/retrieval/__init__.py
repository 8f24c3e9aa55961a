"""Retrieval by inner product: top-k (exact, approximate), ranks and related items."""
