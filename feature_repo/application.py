"""The shop's application, which keeps its purchases in a DynamoDB table of its own.

It knows nothing of features: `feast-dynamo capture` makes history of its table. A purchase is an
item, known by its customer and a number::

    customer_id   number, partition key
    purchase_id   number, sort key
    purchased_at  when, in ms since 1970 UTC
    items         how many
    amount        to the cent

Of the demo shop only the day of a purchase is known: those of a customer and day are a
millisecond apart, in the order of the file.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import duckdb

from feast_dynamo_ext import aws

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

TABLE = "purchases"
PER_CALL = 25  # the most that DynamoDB takes
WRITERS = 8

# In the order in which the purchases were made, as far as that is known.
ITEMS = """
SELECT
  customer_id, purchase_id, items,
  epoch_ms(date) + row_number() OVER (PARTITION BY customer_id, date ORDER BY purchase_id) - 1
    AS purchased_at,
  amount::DECIMAL(18, 2)::VARCHAR AS amount
FROM (SELECT *, row_number() OVER () AS purchase_id FROM purchases)
ORDER BY date, purchase_id
"""


def create_table(client: Any) -> None:
    """Make the table."""
    with aws.translated("dynamodb", f"table {TABLE}"):
        client.create_table(
            TableName=TABLE,
            KeySchema=[
                {"AttributeName": "customer_id", "KeyType": "HASH"},
                {"AttributeName": "purchase_id", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": "N"}
                for name in ("customer_id", "purchase_id")
            ],
            BillingMode="PAY_PER_REQUEST",
        )


def turn_on_stream(client: Any) -> None:
    """Have the table show each change from now on, as `feast apply` asks for."""
    view = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    with aws.translated("dynamodb", f"table {TABLE}"):
        client.update_table(TableName=TABLE, StreamSpecification=view)


def items_of(purchases: pa.Table) -> list[dict[str, Any]]:
    """The purchases as items, in DynamoDB's JSON, in the order in which they were made.

    Args:
        purchases: columns as in `purchases.PURCHASES`.
    """
    with duckdb.connect() as connection:
        connection.register("purchases", purchases)
        rows = connection.sql(ITEMS).to_arrow_table().to_pylist()
    return [{name: {"N": str(value)} for name, value in row.items()} for row in rows]


def write(client: Any, items: Sequence[dict[str, Any]]) -> None:
    """Write items, each once it was made.

    Raises:
        AwsError: DynamoDB refuses.
    """

    def put(start: int) -> None:
        requests = [{"PutRequest": {"Item": item}} for item in items[start : start + PER_CALL]]
        while requests:
            with aws.translated("dynamodb", f"table {TABLE}"):
                answer = client.batch_write_item(RequestItems={TABLE: requests})
            requests = answer["UnprocessedItems"].get(TABLE, [])

    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(put, range(0, len(items), PER_CALL)))
