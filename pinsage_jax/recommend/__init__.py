"""Items for users and collections, from a history of items."""
