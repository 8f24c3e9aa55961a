"""Reporting: what a run did, for people."""
