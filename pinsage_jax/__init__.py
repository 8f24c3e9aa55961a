"""PinSage in JAX: item embeddings from a table of items and collections.

Data flows, and imports point, one way:

  config -> graph -> sampling -> batching -> model -> training -> inference
         -> retrieval -> reporting -> cli/main
"""

__version__ = "0.1.0"
