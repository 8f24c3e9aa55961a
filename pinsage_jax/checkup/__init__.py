"""Checks of the inputs, and a forecast of what a run costs."""
