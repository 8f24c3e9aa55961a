"""What every other folder stands on: errors, files, workdirs, logging, signals."""
