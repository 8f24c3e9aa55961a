"""One run on several processes (hosts) and several devices."""
