"""Encoders of text and pictures that a user gives in place of TF-IDF, and what they encode."""
