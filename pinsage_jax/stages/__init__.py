"""One function for each --mode, in one module for each family of modes; see modes.py."""
