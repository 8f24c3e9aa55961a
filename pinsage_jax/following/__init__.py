"""Edges that arrive while a model serves: an overlay of the graph, and the rows that follow."""
