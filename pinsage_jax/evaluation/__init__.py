"""Evaluation: ranking metrics, baselines, calibration and explanations."""
