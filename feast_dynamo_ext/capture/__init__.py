"""Tables of an application in DynamoDB become history: declared, exported, followed, erased."""
