"""Somebody is erased from all that was captured of a table."""
