"""Baselines, metrics, calibration, ablation and explanation of embeddings."""
