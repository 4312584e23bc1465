"""The point-in-time join: entity rows matched with history, and the features they see."""
