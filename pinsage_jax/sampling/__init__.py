"""Sampling: random-walk neighborhoods, pairs, random and hard negatives; imports no JAX."""
