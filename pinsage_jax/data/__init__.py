"""Input tables: reading and checking them, ids, pairs, and features from columns."""
