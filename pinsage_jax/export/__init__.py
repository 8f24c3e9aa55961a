"""Embeddings on disk: their writer, number formats, reader and measured quality."""
