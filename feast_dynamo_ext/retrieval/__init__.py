"""Point-in-time retrieval: a plan, entity rows, engines, and the job that Feast gets."""
