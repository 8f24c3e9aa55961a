"""The explorer: the catalog on one page, offline or served, to search and to judge neighbors."""
