"""How a row lies in DynamoDB: one file a layout."""
