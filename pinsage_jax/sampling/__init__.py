"""Random-walk neighborhoods, content links, training pairs and negatives; without JAX."""
