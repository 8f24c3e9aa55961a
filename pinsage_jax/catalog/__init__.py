"""Graph, features, ids and pairs as one prepared catalog, and changes of it."""
