"""PinSage as a Python object: fitted on tables in memory, then queried."""
