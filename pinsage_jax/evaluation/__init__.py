"""Evaluation: ranking metrics, baselines, calibration, ablations and explanations."""
