"""Utilities that know nothing of PinSage: errors, files, workdirs, logging, signals, costs."""
