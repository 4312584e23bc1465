"""A proxy that holds each request back: `delay_proxy.py HOST PORT DELAY_S` prints its port.

It serves until its standard input ends. What it uses of the CPU is not its client's.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST = 1 << 22
"""Bytes that are taken at once: more than any request or page has."""


@contextmanager
def delayed(endpoint: str, delay_s: float) -> Iterator[str]:
    """The URL of a proxy in a process of its own."""
    address = urlsplit(endpoint)
    process = subprocess.Popen(
        [sys.executable, __file__, address.hostname or "", str(address.port), str(delay_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(timeout=10)


async def main(host: str, port: int, delay_s: float) -> None:
    async def copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held_s: float
    ) -> None:
        while data := await reader.read(LARGEST):
            if held_s:
                await asyncio.sleep(held_s)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port, limit=LARGEST)
        both = copy(reader, back, delay_s), copy(there, writer, 0.0)
        await asyncio.gather(*both, return_exceptions=True)

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=LARGEST)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)  # what is still open is of no interest to anybody


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
