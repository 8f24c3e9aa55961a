"""Batching: minibatch blocks of fixed shape and the prefetch queue; imports no JAX."""
