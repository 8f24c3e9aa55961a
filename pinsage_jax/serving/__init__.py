"""Serving: nearest neighbors over HTTP, and the explorer for a catalog of any size."""
