"""The embedded example: a generated world of pins and boards."""
