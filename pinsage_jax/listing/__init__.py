"""Listing: restricts and diversifies lists by expressions over columns, ids and filters."""
