"""Items and changes of DynamoDB become rows: types, values, columns."""
