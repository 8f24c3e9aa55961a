"""Recommendation of items to users and collections from the history of each."""
