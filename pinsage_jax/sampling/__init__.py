"""Sampling: random-walk neighbourhoods, pairs, random and hard negatives; imports no JAX."""
