"""Serving: neighbours over HTTP, and the explorer of a catalogue of any size."""
