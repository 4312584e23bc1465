"""As much of S3 over a local folder as readers of Parquet use, each answer after a given delay.

`object_server.py FOLDER DELAY_S` prints its port and serves until it is ended: HEAD, GET with and
without a range, ListObjectsV2. A path is `/bucket/key`; buckets are the folders in FOLDER. It
checks no signatures. Bytes of files are sent by the kernel, so that the server takes little of the
CPU that contenders are measured on.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import sys
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class ObjectServer:
    """The requests of all connections."""

    def __init__(self, folder: Path, delay_s: float) -> None:
        self.folder = folder
        self.delay_s = delay_s

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the client closes it."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (each.partition(":") for each in lines if each)
                }
                await reader.readexactly(int(headers.get("content-length", 0)))
                method, target, _ = line.split(" ")
                await asyncio.sleep(self.delay_s)
                await self.answer(method, target, headers.get("range", ""), writer)
        writer.close()

    async def answer(
        self, method: str, target: str, range_: str, writer: asyncio.StreamWriter
    ) -> None:
        url = urlsplit(target)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        path = self.folder / bucket / key
        if method not in ("GET", "HEAD"):
            await _send(writer, "405 Method Not Allowed", b"")
        elif not key:
            listed = self.listed(bucket, dict(parse_qsl(url.query))) if method == "GET" else b""
            await _send(writer, "200 OK", listed, "Content-Type: application/xml")
        elif not path.is_file():
            await _send(writer, "404 Not Found", _error(key) if method == "GET" else b"")
        else:
            await self.send_file(method, path, range_, writer)

    async def send_file(
        self, method: str, path: Path, range_: str, writer: asyncio.StreamWriter
    ) -> None:
        about = path.stat()
        first, last = _bounds(range_, about.st_size)
        count = last - first + 1
        part = f"Content-Range: bytes {first}-{last}/{about.st_size}\r\n" if range_ else ""
        head = (
            f"HTTP/1.1 {'206 Partial Content' if range_ else '200 OK'}\r\n{part}"
            f"Content-Length: {count}\r\nContent-Type: binary/octet-stream\r\n"
            f"Accept-Ranges: bytes\r\nETag: {_etag(path)}\r\n"
            f"Last-Modified: {email.utils.formatdate(about.st_mtime, usegmt=True)}\r\n\r\n"
        )
        writer.write(head.encode())
        await writer.drain()
        if method == "GET" and count:
            with path.open("rb") as file:
                loop = asyncio.get_running_loop()
                await loop.sendfile(writer.transport, file, first, count)

    def listed(self, bucket: str, query: dict[str, str]) -> bytes:
        """One page of all keys with a prefix: contenders' folders have few files."""
        root, prefix, delimiter = (
            self.folder / bucket,
            query.get("prefix", ""),
            "delimiter" in query,
        )
        keys = sorted(
            key
            for path in root.rglob("*")
            if path.is_file() and (key := path.relative_to(root).as_posix()).startswith(prefix)
        )
        folders = {
            f"{prefix}{key[len(prefix) :].partition('/')[0]}/"
            for key in keys
            if delimiter and "/" in key[len(prefix) :]
        }
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><ETag>{escape(_etag(root / key))}</ETag>"
            f"<Size>{(root / key).stat().st_size}</Size><StorageClass>STANDARD</StorageClass>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
            if not (delimiter and "/" in key[len(prefix) :])
        )
        below = "".join(
            f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>"
            for each in sorted(folders)
        )
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="{NAMESPACE}">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>1000</MaxKeys>"
            f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>{contents}{below}"
            "</ListBucketResult>"
        ).encode()


def _bounds(range_: str, size: int) -> tuple[int, int]:
    """First and last byte of a `Range` header; of the whole file where there is none."""
    if not range_:
        return 0, size - 1
    first, _, last = range_.partition("=")[2].partition("-")
    if not first:  # the last so many bytes
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last or size - 1), size - 1)


def _etag(path: Path) -> str:
    about = path.stat()
    return f'"{about.st_size:x}-{about.st_mtime_ns:x}"'


def _error(key: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchKey</Code>'
        f"<Message>No such key.</Message><Key>{escape(key)}</Key></Error>"
    ).encode()


async def _send(writer: asyncio.StreamWriter, status: str, body: bytes, *headers: str) -> None:
    more = "".join(f"{header}\r\n" for header in headers)
    head = f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def main() -> None:
    served = ObjectServer(Path(sys.argv[1]), float(sys.argv[2]))
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
