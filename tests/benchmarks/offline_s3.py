"""The history on S3 for contenders: a server with a delay to the first byte, or moto.

`offline_s3.py ENDPOINT FOLDER NAME ...` puts the files of these folders into moto's bucket.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import Command
from offline_client import use_test_credentials

from feast_dynamo_ext.local import start_moto, stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
BUCKET = "bench"
FIRST_BYTE_S = 0.02
"""What S3 takes within its region, in the middle: tens of milliseconds."""


@contextlib.contextmanager
def delayed(folder: Path) -> Iterator[str]:
    """A server of the folder's files, each answer after `FIRST_BYTE_S`; its URL."""
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / BUCKET).symlink_to(folder.resolve())
        script = (str(HERE / "object_server.py"), root, str(FIRST_BYTE_S))
        process = Command("object server", Path(sys.executable), script).start(
            stdout=subprocess.PIPE
        )
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


@contextlib.contextmanager
def on_moto(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """moto with the files of some folders; its URL."""
    with tempfile.TemporaryDirectory() as log:
        server = start_moto(Path(log))
        try:
            script = (str(HERE / "offline_s3.py"), server.endpoint, str(folder), *names)
            # A process of its own: the driver must stay small.
            Command("upload", Path(sys.executable), script).finish()
            yield server.endpoint
        finally:
            stop(server)


SERVERS = {
    "S3": lambda folder, _: delayed(folder),
    "moto": on_moto,
}


def main() -> None:
    import boto3

    endpoint, folder, *names = sys.argv[1:]
    use_test_credentials()
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    for name in names:
        for path in sorted((Path(folder) / name).rglob("*.parquet")):
            client.upload_file(str(path), BUCKET, path.relative_to(folder).as_posix())


if __name__ == "__main__":
    main()
