"""What Feast is given: a job, its rows, its SQL, its explanation."""
