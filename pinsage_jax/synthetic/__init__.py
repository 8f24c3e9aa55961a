"""The embedded example: a generated catalog of pins and boards, and its engagement pairs."""
