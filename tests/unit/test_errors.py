"""What Feast's own server makes of this package's errors."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
from feast.errors import FeastError

from feast_dynamo_ext import errors
from feast_dynamo_ext._feast import served

STATUSES = {
    400: {
        "ColumnNotFoundError",
        "ColumnTypeError",
        "EntityKeyError",
        "RequestTooLargeError",
        "TableImportError",
        "EntityRowsError",
        "InvocationError",
        "ItemTooLargeError",
        "UnsupportedTypeError",
        "WindowError",
    },
    404: {"FeatureNotFoundError", "ResourceNotFoundError"},
    409: {"AlreadyRunningError", "NotCommittedError", "TableTakenError"},
    503: {
        "AwsUnavailableError",
        "IncompleteReadError",
        "IncompleteWriteError",
        "RetrievalTimeoutError",
        "StaleVectorsError",
        "ThrottledError",
    },
}
OURS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.FeastDynamoError)
]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_what_leaves_the_provider_is_one_of_feasts_errors_with_its_http_status(kind):
    expected = [status for status, names in STATUSES.items() if kind.__name__ in names] or [500]
    error = kind.__new__(kind)
    error.args = ("what happened",)
    assert served(error) is error
    assert served(error) is error
    assert isinstance(error, kind)
    assert isinstance(error, FeastError)
    assert [error.http_status_code()] == expected
    assert json.loads(error.to_error_detail())["error"] == kind.__name__
    again = FeastError.from_error_detail(error.to_error_detail())
    assert type(again) is FeastError
    assert str(again) == str(error) == "what happened"


def test_an_error_that_left_the_provider_goes_to_another_process():
    error = pickle.loads(pickle.dumps(served(errors.EntityKeyError("no key"))))  # noqa: S301
    assert type(error) is errors.EntityKeyError
    assert str(error) == "no key"


def test_the_errors_alone_load_no_feast():
    code = "import sys, feast_dynamo_ext.errors; print('feast' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"
