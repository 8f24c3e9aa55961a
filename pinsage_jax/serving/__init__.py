"""Serving: neighbors over HTTP, and the explorer of a catalog of any size."""
