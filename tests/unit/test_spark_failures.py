"""What Spark says of a failed executor becomes one clear error."""

from __future__ import annotations

import pytest

from feast_dynamo_ext.errors import ColumnTypeError, DependencyError, OfflineStoreError
from feast_dynamo_ext.retrieval.spark.failures import raised_again, told

SparkError = type("SparkError", (Exception,), {"__module__": "pyspark.errors"})


def failing(text):
    def iterate():
        yield 1
        raise SparkError(text)

    return raised_again(iterate)


def test_our_errors_are_what_they_were():
    @told
    def work(_):
        yield 1
        raise ColumnTypeError("column `a` of `v` holds a text")

    with pytest.raises(Exception, match=r"feast_dynamo_ext\.error") as caught:
        list(work(None))
    text = f"Job aborted: PythonException: Traceback ...\n  {caught.value}\n\tat org.apache.spark"
    with pytest.raises(ColumnTypeError, match=r"^column `a` of `v` holds a text$"):
        list(failing(text))


def test_other_errors_say_the_last_line_of_the_traceback():
    text = "An exception was thrown.\nTraceback (most recent call last):\n  x\nOSError: [5] gone\n"
    with pytest.raises(OfflineStoreError, match=r"^Spark failed: OSError: \[5\] gone\. Its log"):
        list(failing(text))


def test_executors_without_the_package_are_told_apart():
    with pytest.raises(DependencyError, match="PYSPARK_PYTHON"):
        list(failing("Traceback\nModuleNotFoundError: No module named 'pyarrow'\n"))


def test_errors_of_others_pass():
    def iterate():
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(raised_again(iterate))
