"""PinSage as one object of Python: fit on tables in memory, then ask."""
