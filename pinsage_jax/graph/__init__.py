"""Graph: the bipartite graph in CSR form, its pruning and what is withheld of it; no JAX."""
