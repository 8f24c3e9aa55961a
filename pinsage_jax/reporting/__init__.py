"""Reporting: the report of a run, the explorer of its catalog, and the comparison of two runs."""
