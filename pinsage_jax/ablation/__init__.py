"""Variants of the settings, trained with several seeds and compared on the same pairs."""
