"""One function per --mode, in one module per family of modes; modes.py is their table."""
