"""Sections of the report, from what a workdir holds."""
