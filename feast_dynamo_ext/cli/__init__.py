"""The feast-dynamo command."""
