"""A schema inferred from two items; `amount` has two types."""

from feast_dynamo_ext.capture.inference import SchemaInference

inference = SchemaInference()
inference.add(
    [
        {"id": {"S": "a"}, "at": {"N": "1700000000"}, "amount": {"N": "12.50"}},
        {"id": {"S": "b"}, "at": {"N": "1700000060"}, "amount": {"S": "none"}},
    ]
)
schema = inference.schema(event_time="at")
print(schema.report())
print(schema.declaration())
