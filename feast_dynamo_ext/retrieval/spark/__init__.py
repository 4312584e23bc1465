"""Point-in-time joins on Spark: the same plan, with the same answers."""
