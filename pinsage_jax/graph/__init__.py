"""Graph: tables, ids, features, the bipartite CSR graph and its splits; imports no JAX."""
