"""Which items may be listed: expressions over columns, lists of ids, filters, diversity."""
