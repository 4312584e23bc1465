"""The point-in-time join in one pass over history, in numpy."""
