"""Inference: layer-wise embedding of the whole catalog and its export."""
