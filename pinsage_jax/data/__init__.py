"""Input tables: reading, checking, ids, and features made from columns."""
