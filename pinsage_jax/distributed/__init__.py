"""Several processes and several devices as one run."""
