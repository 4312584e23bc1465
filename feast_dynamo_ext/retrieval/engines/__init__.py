"""Engines that match entity rows with history: one file an engine."""
