"""Graph: the bipartite graph in CSR form, its pruning and its splits; no JAX."""
