"""Where the folders meet: one function per --mode."""
