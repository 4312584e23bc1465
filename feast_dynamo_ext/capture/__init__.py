"""DynamoDB tables become history: exports, increments and streams."""
