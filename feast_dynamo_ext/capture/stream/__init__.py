"""A table's stream, followed: by a worker or by AWS Lambda, online at once and into history."""
