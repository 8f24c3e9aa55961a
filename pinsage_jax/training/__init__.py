"""Training: state, steps, curriculum, checkpoints and the loop."""
