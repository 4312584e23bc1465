"""Feast's data-quality monitoring: metrics of a source's columns, and where they are kept."""
