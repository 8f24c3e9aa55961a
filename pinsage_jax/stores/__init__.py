"""Vectors of a finished run as files that vector stores load, and a check of what they hold."""
