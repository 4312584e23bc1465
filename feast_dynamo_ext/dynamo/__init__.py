"""The online side: rows in DynamoDB, one packed item each."""
