"""HTTP/1.1 messages of the failing proxy, on either side of it."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fault_kinds import Plain


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def operation(self) -> str:
        return self.headers["x-amz-target"].rpartition(".")[2]

    def with_body(self, body: bytes) -> bytes:
        headers = {**self.headers, "content-length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{self.line}\r\n{lines}\r\n".encode() + body


@dataclass(frozen=True)
class Reply:
    """What is sent, and how the connection ends: `keep`, `close` or `reset`."""

    data: bytes
    end: str = "keep"


class Backend:
    """Kept-alive connections to the real thing."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, data: bytes) -> Plain:
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._exchange(connection, data)
            except (ConnectionError, asyncio.IncompleteReadError):
                connection[1].close()  # closed by the other side while it was idle
        return await self._exchange(await asyncio.open_connection(*self._address), data)

    async def _exchange(self, connection: Any, data: bytes) -> Plain:
        reader, writer = connection
        writer.write(data)
        line, headers, body = await read_message(reader)
        self._idle.append(connection)
        kept = {name: headers[name] for name in ("x-amzn-requestid",) if name in headers}
        return Plain(int(line.split()[1]), body, kept)


async def read_message(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """First line, headers (names in lower case) and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.rstrip().split("\r\n")
    pairs = (entry.split(":", 1) for entry in lines)
    headers = {name.lower(): value.strip() for name, value in pairs}
    if headers.get("transfer-encoding") == "chunked":
        return line, headers, await _read_chunks(reader)
    return line, headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


def linger_no_more(writer: asyncio.StreamWriter) -> None:
    """Have the connection end with a reset."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
