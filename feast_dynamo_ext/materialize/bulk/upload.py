"""One S3 object, sent in parts while it is being made; it appears whole or not at all."""

from __future__ import annotations

import collections
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from feast_dynamo_ext.aws import translated

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType

logger = logging.getLogger(__name__)

PART_BYTES = 8 * 1_024**2
"""Bytes of a part. S3 takes at least 5 MiB (but for the last), and 10,000 parts an object."""

PARTS_AT_ONCE = 4
CONTENT_TYPE = "application/gzip"


class Upload:
    """A context manager; leaving it with an error leaves no object.

    Holds `PARTS_AT_ONCE` + 1 parts in memory at most.

    Args:
        s3: boto3's client.
        bucket: bucket name.
        key: the object's key.
        part_bytes: as PART_BYTES.
    """

    def __init__(self, s3: Any, bucket: str, key: str, part_bytes: int = PART_BYTES) -> None:
        self._s3 = s3
        self._object = {"Bucket": bucket, "Key": key}
        self._part_bytes = part_bytes
        self._held = bytearray()
        self._id: str | None = None
        self._sent = 0
        self._under_way: collections.deque[tuple[int, Future[str]]] = collections.deque()
        self._parts: list[dict[str, Any]] = []
        self._threads = ThreadPoolExecutor(PARTS_AT_ONCE, "feast-dynamo-upload")

    @property
    def uri(self) -> str:
        """The object, for people."""
        return f"s3://{self._object['Bucket']}/{self._object['Key']}"

    def write(self, data: bytes) -> None:
        """Add bytes; waits while too many parts are under way.

        Raises:
            AwsError: S3 refused.
        """
        self._held += data
        while len(self._held) >= self._part_bytes:
            self._send(bytes(self._held[: self._part_bytes]))
            del self._held[: self._part_bytes]

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        finished = False
        try:
            if error is None:
                self._finish()
                finished = True
        finally:
            self._threads.shutdown(cancel_futures=True)
            if not finished and self._id is not None:
                self._abort()

    def _send(self, part: bytes) -> None:
        if self._id is None:
            with translated("s3", self.uri):
                answer = self._s3.create_multipart_upload(**self._object, ContentType=CONTENT_TYPE)
            self._id = answer["UploadId"]
        self._sent += 1
        self._under_way.append((self._sent, self._threads.submit(self._put, self._sent, part)))
        while len(self._under_way) > PARTS_AT_ONCE:
            self._settle()

    def _put(self, number: int, part: bytes) -> str:
        with translated("s3", self.uri):
            answer = self._s3.upload_part(
                **self._object, UploadId=self._id, PartNumber=number, Body=part
            )
        return str(answer["ETag"])

    def _settle(self) -> None:
        number, future = self._under_way.popleft()
        self._parts.append({"PartNumber": number, "ETag": future.result()})

    def _finish(self) -> None:
        if self._id is None:
            with translated("s3", self.uri):
                self._s3.put_object(
                    **self._object, Body=bytes(self._held), ContentType=CONTENT_TYPE
                )
            return
        if self._held:
            self._send(bytes(self._held))
        while self._under_way:
            self._settle()
        with translated("s3", self.uri):
            self._s3.complete_multipart_upload(
                **self._object, UploadId=self._id, MultipartUpload={"Parts": self._parts}
            )

    def _abort(self) -> None:
        try:
            self._s3.abort_multipart_upload(**self._object, UploadId=self._id)
        except (ClientError, BotoCoreError) as error:
            # Another error is on its way to the caller; this one costs storage alone.
            logger.warning("parts of %s are left, and charged, until aborted: %s", self.uri, error)
