"""Precomputed feature services: one item an entity, kept as fresh as the rows."""
