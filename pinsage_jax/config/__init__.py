"""Settings of every stage as frozen dataclasses."""
