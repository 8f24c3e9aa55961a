"""Embeddings on disk: their writer, number formats and reader."""
