"""Timings of every stage, run with `python -m benchmarks.run`; never imported by the package."""
