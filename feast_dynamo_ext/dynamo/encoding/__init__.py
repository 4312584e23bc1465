"""Arrow columns as the JSON of DynamoDB's requests, column by column: no Python object a cell."""
