"""Inference: layer-wise embedding of the whole catalogue and its export."""
