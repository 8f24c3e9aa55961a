"""PinSage beside other recommenders, each by its own code; see __main__.py for the command."""
