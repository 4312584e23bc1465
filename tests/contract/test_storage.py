"""Files on S3 (moto, and a server that breaks off) and on a disk, as storage.py has them."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.stub import Stubber

from feast_dynamo_ext.aws import AwsSettings
from feast_dynamo_ext.errors import (
    AwsUnavailableError,
    DestinationError,
    DestinationExistsError,
    ResourceNotFoundError,
)
from feast_dynamo_ext.storage import (
    PARTS_OF_A_SIZE,
    FileReplacedError,
    LocalFiles,
    S3Files,
    files_of,
)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    """A place for files: on a disk, or on S3."""
    if request.param == "local":
        return str(tmp_path / "data")
    return f"s3://{request.getfixturevalue('bucket')}/data"


@pytest.fixture
def files(root, request):
    endpoint = request.getfixturevalue("moto_endpoint") if root.startswith("s3") else None
    return files_of(root, AwsSettings("us-east-1", endpoint))


def put(files, uri: str, data: bytes) -> None:
    with files.new_file(uri) as file:
        file.write(data)


def test_a_file_is_found_listed_read_and_deleted(files, root):
    for name in ("a/b.bin", "a/.hidden/c", "a", "ab"):
        if name != "a" or root.startswith("s3"):  # a disk has no file beside a folder of its name
            put(files, f"{root}/{name}", name.encode() * 1_000_000)
    path = root.removeprefix("s3://")
    found = {file.path: file for file in files.below(f"{root}/a")}
    assert {name: file.size for name, file in found.items()} == {
        f"{path}/a/b.bin": 7_000_000,
        f"{path}/a/.hidden/c": 11_000_000,
    }
    assert files.find(f"{root}/a/b.bin") == found[f"{path}/a/b.bin"]
    assert files.find(f"{root}/a/b") is None
    assert list(files.below(f"{root}/nothing")) == []
    chunks = list(files.chunks(f"{root}/a/b.bin"))
    assert max(map(len, chunks)) <= 1 << 20
    assert b"".join(chunks) == b"a/b.bin" * 1_000_000
    assert files.current([*found.values()]) == found
    files.delete([f"{root}/a/b.bin", f"{root}/a/gone"])
    assert set(files.current([*found.values()])) == {f"{path}/a/.hidden/c"}
    with pytest.raises(FileNotFoundError):
        next(files.chunks(f"{root}/a/b.bin"))


@pytest.mark.parametrize("size", [10, 12 << 20], ids=["small", "in parts"])
def test_a_file_is_rewritten_unless_another_writer_was_there(files, root, size):
    uri = f"{root}/orders.parquet"
    put(files, uri, b"old")
    with files.rewriting(uri) as (seen, new):
        assert seen.size == 3
        new.write(b"n" * size)
        assert files.read(uri) == b"old"
    assert files.read(uri) == b"n" * size
    for theirs in (b"theirs", None):
        with contextlib.ExitStack() as block:
            _, new = block.enter_context(files.rewriting(uri))
            new.write(b"m" * size)
            put(files, uri, theirs) if theirs else files.delete([uri])
            with pytest.raises(FileReplacedError, match="left as that writer made it"):
                block.close()
        assert files.read(uri) == theirs
    with pytest.raises(FileNotFoundError), files.rewriting(uri):
        pass
    assert all(file.path.endswith(".lock") for file in files.below(root))


def test_of_several_writers_of_one_new_file_one_succeeds(files, root):
    uri, outcomes = f"{root}/new/manifest.json", []

    def write(number: int) -> None:
        try:
            files.create(uri, b"%d" % number)
        except DestinationExistsError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(number)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert files.read(uri) == b"%d" % winner
    assert len(outcomes) == 6
    assert sum("was written by another process meanwhile" in str(each) for each in outcomes) == 5
    # Nothing else is left, hidden or not.
    assert len(list(files.below(root))) == 1


@pytest.mark.parametrize("size", [10, 20_000_000])
def test_a_file_that_may_not_replace_another_does_not(files, root, size):
    """Small ones are one request of S3, large ones are uploaded in parts."""
    with files.new_file(f"{root}/a", replaces=False) as file:
        file.write(b"1" * size)
    with (
        pytest.raises(DestinationExistsError, match=r"/a was written by another"),
        files.new_file(f"{root}/a", replaces=False) as file,
    ):
        file.write(b"2" * size)
    assert files.read(f"{root}/a") == b"1" * size
    assert [state.path for state in files.below(root)] == [f"{root}/a".removeprefix("s3://")]


def test_a_file_is_swapped_where_it_holds_what_it_is_known_to(files, root):
    put(files, f"{root}/a", b"old")
    files.swap(f"{root}/a", b"old", b"new")
    assert files.read(f"{root}/a") == b"new"
    with pytest.raises(FileReplacedError, match=r"/a was replaced or removed"):
        files.swap(f"{root}/a", b"old", b"newer")
    assert files.read(f"{root}/a") == b"new"
    with pytest.raises(FileReplacedError, match=r"/b was replaced or removed"):
        files.swap(f"{root}/b", b"old", b"new")
    assert [state.path for state in files.below(root)] == [f"{root}/a".removeprefix("s3://")]


def test_of_several_writers_that_swap_one_file_one_succeeds(files, root):
    put(files, f"{root}/a", b"0")
    start, won = threading.Barrier(6), []

    def swap(number: int) -> None:
        start.wait()
        with contextlib.suppress(FileReplacedError):
            files.swap(f"{root}/a", b"0", f"{number}".encode())
            won.append(number)

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert files.read(f"{root}/a") == f"{won[0]}".encode()


def test_a_rewriting_that_fails_leaves_the_file(files, root):
    uri = f"{root}/orders.parquet"
    put(files, uri, b"old")

    def fail() -> None:
        with files.rewriting(uri) as (_, new):
            new.write(b"n" * (12 << 20))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files.read(uri) == b"old"


@pytest.mark.parametrize(
    ("size", "operation"), [(10, "PutObject"), (12 << 20, "CompleteMultipartUpload")]
)
def test_s3_compares_the_etag_of_a_rewritten_file(bucket, moto_endpoint, size, operation):
    uri = f"s3://{bucket}/orders.parquet"
    files = files_of(uri, AwsSettings("us-east-1", moto_endpoint))
    put(files, uri, b"old")
    sent = []
    files.client.meta.events.register(
        f"provide-client-params.s3.{operation}", lambda params, **_: sent.append(dict(params))
    )
    with files.rewriting(uri) as (seen, new):
        new.write(b"n" * size)
    assert [request["IfMatch"] for request in sent] == [f'"{seen.etag}"']


def test_an_error_in_the_block_keeps_what_was_there(files, root):
    put(files, f"{root}/a", b"before")

    def half() -> None:
        with files.new_file(f"{root}/a") as file:
            file.write(b"half")
            raise ConnectionError("the source is gone")

    with pytest.raises(ConnectionError, match="the source is gone"):
        half()
    assert files.read(f"{root}/a") == b"before"
    assert [file.size for file in files.below(root)] == [6]


def test_a_bucket_that_is_not_there_is_no_missing_file(moto_endpoint):
    files = files_of("s3://", AwsSettings("us-east-1", moto_endpoint))
    with pytest.raises(ResourceNotFoundError, match="NoSuchBucket"):
        files.read("s3://no-such-bucket-here/a")


def test_a_folder_cannot_be_deleted_as_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DestinationError, match="folder cannot be deleted: "):
        LocalFiles().delete([str(tmp_path / "folder")])


def test_parts_of_a_very_large_upload_grow():
    client = boto3.client("s3", region_name="us-east-1")
    sizes: dict[int, int] = {}

    def note(params, **_) -> None:
        sizes[params["PartNumber"]] = len(params["Body"])

    client.meta.events.register("before-parameter-build.s3.UploadPart", note)
    with Stubber(client) as stub:
        stub.add_response("create_multipart_upload", {"UploadId": "u"})
        for _ in range(PARTS_OF_A_SIZE + 3):
            stub.add_response("upload_part", {"ETag": "e"})
        stub.add_response("complete_multipart_upload", {})
        with S3Files(client, part_bytes=2).new_file("s3://b/k") as file:
            file.write(b"x" * (2 * PARTS_OF_A_SIZE + 4 + 4 + 1))
        stub.assert_no_pending_responses()
    client.close()
    assert [sizes[number] for number in range(999, 1004)] == [2, 2, 4, 4, 1]
    assert len(sizes) == PARTS_OF_A_SIZE + 3


DATA = bytes(range(256)) * 10_000  # 2.56 MB


@pytest.fixture
def breaking():
    """Starts an S3 whose answers break off after so many bytes each; keeps ranges and ETags."""
    servers = []

    def start(most: int) -> S3Files:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                start.asked.append((self.headers.get("Range"), self.headers.get("If-Match")))
                found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                rest = DATA[int(found[1]) if found else 0 :]
                self.send_response(206 if found else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.send_header("ETag", '"e"')
                self.end_headers()
                self.wfile.write(rest[:most])
                self.close_connection = True

            def log_message(self, *args) -> None:
                """Keep quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append((server, threading.Thread(target=server.serve_forever, args=(0.02,))))
        servers[-1][1].start()
        settings = AwsSettings("us-east-1", f"http://127.0.0.1:{server.server_port}")
        return files_of("s3://", settings)

    start.asked = []
    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_download_that_breaks_off_goes_on_where_it_was(breaking):
    files = breaking(most=1 << 20)
    assert b"".join(files.chunks("s3://b/k")) == DATA
    assert breaking.asked == [
        (None, None),
        ("bytes=1048576-", '"e"'),
        ("bytes=2097152-", '"e"'),
    ]


def test_a_download_that_brings_nothing_is_given_up(breaking):
    files = breaking(most=0)
    with pytest.raises(AwsUnavailableError, match="s3 on s3://b/k"):
        list(files.chunks("s3://b/k"))
    assert len(breaking.asked) == 1


def test_a_lock_that_is_no_file_is_refused_and_not_waited_for(tmp_path):
    put(LocalFiles(), str(tmp_path / "orders"), b"old")
    os.mkfifo(tmp_path / ".orders.lock")
    with (
        pytest.raises(DestinationError, match="orders cannot be written"),
        LocalFiles().rewriting(str(tmp_path / "orders")),
    ):
        pass
