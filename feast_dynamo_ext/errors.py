"""Every error this package raises, as one tree.

Each message says what happened, to which table, view, column or file, and what to do about it.
Where a caller would expect a builtin, the error is that builtin too::

    FeastDynamoError
    ├── ConfigError                      a setting that cannot work
    │   └── RequestError                 a request that AWS's model refuses
    ├── WindowError                      event times that cannot be written       (ValueError)
    ├── DependencyError                  an optional package is missing         (ImportError)
    ├── AwsError                         AWS refused a call: operation, code, request id
    │   ├── CredentialsError             no, wrong or expired credentials       (PermissionError)
    │   ├── AccessDeniedError            the identity may not do this           (PermissionError)
    │   ├── ResourceNotFoundError        no such table, bucket or object        (LookupError)
    │   ├── ThrottledError               AWS asked to slow down
    │   └── AwsUnavailableError          no answer: network, timeout, 5xx       (ConnectionError)
    ├── OnlineStoreError
    │   ├── IncompleteReadError          keys left unread at the deadline       (TimeoutError)
    │   ├── IncompleteWriteError         rows left unwritten at the deadline    (TimeoutError)
    │   ├── EntityKeyError               an entity key that cannot be a key     (ValueError)
    │   ├── FeatureNotFoundError         a reference to no feature    (KeyError, ValueError)
    │   ├── RequestTooLargeError         more rows than a request may have      (ValueError)
    │   ├── ItemTooLargeError            over DynamoDB's 400 KB an item         (ValueError)
    │   ├── StaleVectorsError            rows written, precomputed vectors not
    │   ├── AlreadyRunningError          another run materializes the view
    │   ├── LeaseLostError               another run has taken the view over
    │   ├── ItemFormatError              an item that is not in our layout      (ValueError)
    │   ├── TableLayoutError             a table that is not in our layout      (ValueError)
    │   ├── TableTakenError              a table that another view has          (ValueError)
    │   ├── TablesDifferError            tables missing or not as set           (ValueError)
    │   ├── TableProtectedError          a table that may not be deleted        (PermissionError)
    │   └── TablesFailedError            several tables failed, each named
    ├── OfflineStoreError
    │   ├── SourceNotFoundError          no file at the source's path           (FileNotFoundError)
    │   ├── SourceReadError              a file that cannot be read             (OSError)
    │   ├── ColumnNotFoundError          a view names a column no file has      (LookupError)
    │   ├── ColumnTypeError              a column of the wrong type             (TypeError)
    │   ├── DestinationError             a file that cannot be written          (OSError)
    │   ├── DestinationExistsError       something is there already             (FileExistsError)
    │   ├── RetrievalTimeoutError        a retrieval that took too long         (TimeoutError)
    │   ├── EntityRowsError              entity rows that cannot be joined      (ValueError)
    │   ├── NotCommittedError            a change of a table that was not made
    │   ├── TableImportError             files that a table cannot take         (ValueError)
    ├── UnsupportedTypeError             a value or type that cannot be kept    (TypeError)
    ├── TrainingSetError                 a training set SageMaker cannot read   (ValueError)
    ├── TrainingJobError                 a training job that failed or stopped  (RuntimeError)
    ├── SubmittedJobError                a submitted command that failed        (RuntimeError)
    ├── ServingError                     a model that cannot be served          (RuntimeError)
    ├── InvocationError                  a request that an endpoint refuses     (ValueError)
    ├── PipelineError                    a pipeline's step that failed          (RuntimeError)
    ├── ViewsFailedError                 feature views that failed, each named  (RuntimeError)
    ├── CaptureError                     changes of a table that cannot be captured (RuntimeError)
    ├── BulkLoadError                    files that DynamoDB did not load whole (RuntimeError)
    └── LocalError                       the embedded AWS: cannot start or stop (RuntimeError)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BAD_REQUEST, NOT_FOUND, CONFLICT, SERVER_ERROR, UNAVAILABLE = 400, 404, 409, 500, 503


class FeastDynamoError(click.ClickException):
    """Base of every error of this package; `feast` prints its message in one line.

    Attributes:
        http_status: what `feast serve` answers it with.
    """

    http_status: ClassVar[int] = SERVER_ERROR

    def __str__(self) -> str:
        """The message as it is now: a view may have been named in it since."""
        return BaseException.__str__(self)

    def format_message(self) -> str:
        """The message in one line."""
        return " ".join(str(self).split())


class ConfigError(FeastDynamoError):
    """A setting that cannot work."""

    # Not a ValueError: pydantic would fold that into a ValidationError of many lines, and the one
    # sentence that helps would be lost in it.


class RequestError(ConfigError):
    """A request that AWS's service model does not allow; nothing was sent.

    Attributes:
        problems: everything that is wrong with it, each with its path.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class WindowError(FeastDynamoError, ValueError):
    """Event times that cannot be materialized as asked, or that are too far in the future."""

    http_status: ClassVar[int] = BAD_REQUEST


class DependencyError(FeastDynamoError, ImportError):
    """An optional package is missing; the message says what to install."""


class AwsError(FeastDynamoError):
    """AWS refused a call.

    Attributes:
        service: AWS service id, for example ``dynamodb``.
        operation: API operation, for example ``BatchGetItem``.
        code: AWS error code, for example ``ValidationException``.
        request_id: AWS request id, to quote to AWS support; empty where there was no answer.
    """

    def __init__(
        self,
        message: str,
        *,
        service: str = "",
        operation: str = "",
        code: str = "",
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.service = service
        self.operation = operation
        self.code = code
        self.request_id = request_id


class CredentialsError(AwsError, PermissionError):
    """No credentials, or wrong or expired ones."""


class AccessDeniedError(AwsError, PermissionError):
    """The identity is known but may not do this."""


class ResourceNotFoundError(AwsError, LookupError):
    """No such table, bucket or object."""

    http_status: ClassVar[int] = NOT_FOUND


class ThrottledError(AwsError):
    """AWS asked to slow down."""

    http_status: ClassVar[int] = UNAVAILABLE


class AwsUnavailableError(AwsError, ConnectionError):
    """No usable answer: network, timeout or a 5xx."""

    http_status: ClassVar[int] = UNAVAILABLE


class OnlineStoreError(FeastDynamoError):
    """Base of the online store's own errors."""


class IncompleteReadError(OnlineStoreError, TimeoutError):
    """Keys were left unread when the deadline came.

    Attributes:
        unread: number of unread keys by table name.
    """

    http_status: ClassVar[int] = UNAVAILABLE

    def __init__(self, message: str, *, unread: Mapping[str, int]) -> None:
        super().__init__(message)
        self.unread = dict(unread)


class IncompleteWriteError(OnlineStoreError, TimeoutError):
    """Rows were left unwritten when the deadline came.

    Attributes:
        unwritten: entity keys (serialized) of the rows that are not in the table.
    """

    http_status: ClassVar[int] = UNAVAILABLE

    def __init__(self, message: str, *, unwritten: list[bytes]) -> None:
        super().__init__(message)
        self.unwritten = unwritten


class EntityKeyError(OnlineStoreError, ValueError):
    """An entity key that DynamoDB cannot hold, or a request without its join key."""

    http_status: ClassVar[int] = BAD_REQUEST


class FeatureNotFoundError(OnlineStoreError, KeyError, ValueError):
    """A requested feature that its view does not have, or a reference that names none."""

    http_status: ClassVar[int] = NOT_FOUND


class RequestTooLargeError(OnlineStoreError, ValueError):
    """A request for more rows than `max_rows_per_request`."""

    http_status: ClassVar[int] = BAD_REQUEST


class ItemTooLargeError(OnlineStoreError, ValueError):
    """A row over DynamoDB's 400 KB an item."""

    http_status: ClassVar[int] = BAD_REQUEST


class StaleVectorsError(OnlineStoreError):
    """Rows are written, but the vectors of precomputed services may still be of before.

    The same write again mends it.
    """

    http_status: ClassVar[int] = UNAVAILABLE


class AlreadyRunningError(OnlineStoreError):
    """Another run materializes the view now; the message names it."""

    http_status: ClassVar[int] = CONFLICT


class LeaseLostError(OnlineStoreError):
    """This run no longer is the one that may materialize the view: it was silent for too long."""


class ItemFormatError(OnlineStoreError, ValueError):
    """An item that is not in our layout."""


class TableLayoutError(OnlineStoreError, ValueError):
    """A table that is not in our layout."""


class TableTakenError(OnlineStoreError, ValueError):
    """A table that another feature view has, of this project or of another."""

    http_status: ClassVar[int] = CONFLICT


class TablesDifferError(OnlineStoreError, ValueError):
    """Tables that are missing or not as they are set, found by `manage_tables: verify`.

    Attributes:
        differences: what differs, by table name.
    """

    def __init__(self, message: str, *, differences: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(message)
        self.differences = dict(differences)


class TableProtectedError(OnlineStoreError, PermissionError):
    """A table whose deletion protection is on."""


class TablesFailedError(OnlineStoreError):
    """Several tables could not be made as they should be; the others were.

    Attributes:
        failures: the error of each, by table name.
    """

    def __init__(self, message: str, *, failures: Mapping[str, FeastDynamoError]) -> None:
        super().__init__(message)
        self.failures = dict(failures)


class OfflineStoreError(FeastDynamoError):
    """Base of the offline store's own errors."""


class SourceNotFoundError(OfflineStoreError, FileNotFoundError):
    """No file at the source's path."""


class SourceReadError(OfflineStoreError, OSError):
    """A file that is there but cannot be read."""


class ColumnNotFoundError(OfflineStoreError, LookupError):
    """A view names a column that no file of its source has."""

    http_status: ClassVar[int] = BAD_REQUEST


class ColumnTypeError(OfflineStoreError, TypeError):
    """A column whose type cannot serve its purpose."""

    http_status: ClassVar[int] = BAD_REQUEST


class DestinationError(OfflineStoreError, OSError):
    """A file that cannot be written: no permission, a full disk."""


class DestinationExistsError(OfflineStoreError, FileExistsError):
    """There is something already where a result is to be written."""


class RetrievalTimeoutError(OfflineStoreError, TimeoutError):
    """A retrieval that was not done in the seconds that it was given."""

    http_status: ClassVar[int] = UNAVAILABLE


class EntityRowsError(OfflineStoreError, ValueError):
    """Entity rows that cannot be joined."""

    http_status: ClassVar[int] = BAD_REQUEST


class NotCommittedError(OfflineStoreError):
    """A change of an Iceberg table that is surely not in it: other writers came first."""

    http_status = CONFLICT


class TableImportError(OfflineStoreError, ValueError):
    """Files of a history that an Iceberg table cannot take; all reasons at once.

    Attributes:
        problems: what stands in the way.
    """

    http_status: ClassVar[int] = BAD_REQUEST

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class UnsupportedTypeError(FeastDynamoError, TypeError):
    """A value or a type that cannot be kept without loss."""

    http_status: ClassVar[int] = BAD_REQUEST


class TrainingSetError(FeastDynamoError, ValueError):
    """A training set that SageMaker could not read."""


class TrainingJobError(FeastDynamoError, RuntimeError):
    """A training job that failed or was stopped, on SageMaker or on this machine.

    Attributes:
        name: of the job.
        status: `Failed` or `Stopped`.
        failure_reason: SageMaker's words; empty where there are none.
    """

    def __init__(
        self, message: str, *, name: str = "", status: str = "", failure_reason: str = ""
    ) -> None:
        super().__init__(message)
        self.name, self.status, self.failure_reason = name, status, failure_reason


class SubmittedJobError(FeastDynamoError, RuntimeError):
    """A command that failed, or was stopped, in a job of Glue, EMR Serverless or SageMaker.

    Attributes:
        name: of the job.
        status: the service's word, for example `FAILED`.
        failure_reason: the service's words; empty where there are none.
    """

    def __init__(
        self, message: str, *, name: str = "", status: str = "", failure_reason: str = ""
    ) -> None:
        super().__init__(message)
        self.name, self.status, self.failure_reason = name, status, failure_reason


class PipelineError(FeastDynamoError, RuntimeError):
    """A step of a pipeline that failed on this machine.

    Attributes:
        step: its name.
    """

    def __init__(self, message: str, step: str) -> None:
        super().__init__(message)
        self.step = step


class ServingError(FeastDynamoError, RuntimeError):
    """A model that cannot be served: its archive is incomplete, or its features have changed."""


class InvocationError(FeastDynamoError, ValueError):
    """A request that a model's endpoint refuses.

    Attributes:
        status: HTTP status of the answer.
    """

    http_status: ClassVar[int] = BAD_REQUEST

    def __init__(self, message: str, status: int = BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


class ViewsFailedError(FeastDynamoError, RuntimeError):
    """Feature views that could not be materialized; the others of the run were.

    Attributes:
        failures: the error of each, by view name.
    """

    def __init__(self, message: str, *, failures: Mapping[str, BaseException]) -> None:
        super().__init__(message)
        self.failures = dict(failures)


class CaptureError(FeastDynamoError, RuntimeError):
    """Changes of a DynamoDB table that cannot be captured, or an export that is not whole."""


class BulkLoadError(FeastDynamoError, RuntimeError):
    """An import that did not load all it was given.

    Attributes:
        arn: the import; empty where none was started.
    """

    def __init__(self, message: str, *, arn: str = "") -> None:
        super().__init__(message)
        self.arn = arn


class LocalError(FeastDynamoError, RuntimeError):
    """The embedded AWS cannot start, stop or answer."""
