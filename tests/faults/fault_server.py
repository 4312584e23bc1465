"""A proxy in front of DynamoDB that fails as networks and services do; a process of its own.

    python fault_server.py http://127.0.0.1:8000

It prints its address, and one for its control, and runs until its standard input ends. A PUT to
the latter says what is to fail from then on; a GET waits until nothing is in flight and says what
was done since.
Which fault meets the n-th request of a plan is a function of the plan's seed and n.
"""

from __future__ import annotations

import asyncio
import calendar
import json
import os
import random
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from fault_http import Backend, Reply, Request, linger_no_more, read_message
from fault_kinds import Plain, broken, expired, flipped, misspelt, partial, skewed, throttled

ACCEPTED_SKEW_S = 300
KEY_ID = re.compile(r"Credential=([^/]+)/")


@dataclass(frozen=True)
class Plan:
    """What is to fail.

    Attributes:
        seed: of the dice.
        chances: probability of each kind of fault, of one request.
        slow_s: how long an answer that is `slow` is held back, seconds.
        delay_s: the same for one that is `delayed`.
        clock: [request number, seconds]: from that request on the service's clock is that far
            ahead of this machine's.
        expired: [first, last] request numbers between which credentials count as expired.
        key_lifetime_s: seconds from an access key's first use until it counts as expired.
        notes_keys: whether the report says which keys each good answer of a read settled.
    """

    seed: int = 0
    chances: dict[str, float] = field(default_factory=dict)
    slow_s: float = 1.0
    delay_s: float = 0.05
    clock: list[tuple[int, float]] = field(default_factory=list)
    expired: tuple[int, int] = (0, 0)
    key_lifetime_s: float | None = None
    notes_keys: bool = False


class FaultServer:
    """The proxy."""

    def __init__(self, backend: str) -> None:
        self._backend = Backend(backend)
        self._plan = Plan()
        self._count = self._connections = self._in_flight = 0
        self._faults: Counter[str] = Counter()
        self._answered: list[dict[str, list[str]]] = []
        self._errors: list[str] = []
        # asyncio forgets the task of a connection that the client has closed.
        self._talks: set[asyncio.Task[None]] = set()
        self._key_first_seen_s: dict[str, float] = {}

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._connections += 1
        task = asyncio.current_task()
        self._talks.add(task)
        task.add_done_callback(self._talks.discard)
        dice = random.Random(f"{self._plan.seed}:connection:{self._connections}")  # noqa: S311 - not a secret
        try:
            if dice.random() < self._plan.chances.get("refused", 0):
                self._faults["refused"] += 1
                linger_no_more(writer)
                return
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        except Exception as error:
            self._errors.append(repr(error))  # of the proxy itself: the report says so
            raise
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = Request(*await read_message(reader))
        self._in_flight += 1
        try:
            reply = await self._handle(request)
        finally:
            self._in_flight -= 1
        if reply.end == "reset":
            linger_no_more(writer)
        writer.write(reply.data)
        await writer.drain()
        return reply.end == "keep"

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a plan, or report."""
        request = Request(*await read_message(reader))
        writer.write(Plain(200, await self._controlled(request)).sent())
        writer.close()

    async def _controlled(self, request: Request) -> bytes:
        if request.line.startswith("PUT"):
            self._plan = Plan(**json.loads(request.body))
            self._count = self._connections = 0
            self._faults.clear()
            self._answered.clear()
            self._key_first_seen_s.clear()
            return b"{}"
        while self._in_flight:
            await asyncio.sleep(0.005)
        report = {
            "requests": self._count,
            "faults": self._faults,
            "answered": self._answered,
            "keys": len(self._key_first_seen_s),
            "errors": self._errors,
        }
        return json.dumps(report).encode()

    async def _handle(self, request: Request) -> Reply:
        number, self._count = self._count, self._count + 1
        dice = random.Random(f"{self._plan.seed}:{number}")  # noqa: S311 - not a secret
        now_s = time.time() + self._clock_ahead_s(number)
        refused = self._refusal(request, number, now_s)
        if refused is not None:
            date = {"Date": formatdate(now_s, usegmt=True)}
            return Reply(Plain(refused.status, refused.body, date).sent())
        kind = self._draw(dice)
        if kind is None:
            return self._good(request, await self._forward(request))
        self._faults[kind] += 1
        return await getattr(self, kind)(request, dice)

    def _draw(self, dice: random.Random) -> str | None:
        drawn = dice.random()
        for kind, chance in self._plan.chances.items():
            if kind != "refused":
                if drawn < chance:
                    return kind
                drawn -= chance
        return None

    def _clock_ahead_s(self, number: int) -> float:
        return next((ahead for start, ahead in self._plan.clock[::-1] if number >= start), 0.0)

    def _refusal(self, request: Request, number: int, now_s: float) -> Plain | None:
        stamp = request.headers["x-amz-date"]
        signed_s = calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
        if abs(signed_s - now_s) > ACCEPTED_SKEW_S:
            self._faults["wrong clock"] += 1
            return skewed(stamp, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s)))
        first, last = self._plan.expired
        if first <= number < last or self._has_expired(request):
            self._faults["expired"] += 1
            return expired()
        return None

    def _has_expired(self, request: Request) -> bool:
        (key,) = KEY_ID.findall(request.headers["authorization"])
        seen_s = self._key_first_seen_s.setdefault(key, time.monotonic())
        lifetime_s = self._plan.key_lifetime_s
        return lifetime_s is not None and time.monotonic() - seen_s > lifetime_s

    async def _forward(self, request: Request, body: dict[str, Any] | None = None) -> Plain:
        data = request.body if body is None else json.dumps(body).encode()
        return await self._backend.send(request.with_body(data))

    def _good(self, request: Request, answer: Plain) -> Reply:
        """An answer that reaches the client whole."""
        if self._plan.notes_keys and request.operation == "BatchGetItem" and answer.status == 200:
            left = json.loads(answer.body).get("UnprocessedKeys", {})
            for table, entry in json.loads(request.body)["RequestItems"].items():
                rest = left.get(table, {}).get("Keys", ())
                settled = [key["k"]["B"] for key in entry["Keys"] if key not in rest]
                self._answered.append({table: settled})
        return Reply(answer.sent())

    # Faults, by the names of a plan's chances

    async def throttled(self, request: Request, dice: random.Random) -> Reply:
        if dice.random() < 0.3:
            await self._forward(request)  # the work was done, and yet
        return Reply(throttled(dice).sent())

    async def failed(self, request: Request, dice: random.Random) -> Reply:
        if dice.random() < 0.5:
            await self._forward(request)
        return Reply(broken(dice).sent())

    async def unprocessed(self, request: Request, dice: random.Random) -> Reply:
        part = partial(request.operation, json.loads(request.body), dice)
        if part is None:
            return await self.throttled(request, dice)
        if part.body is None:
            answer = Plain(200, b'{"Responses": []}')
        else:
            answer = await self._forward(request, part.body)
        if answer.status != 200:
            return Reply(answer.sent())
        complete = json.dumps(part.complete(json.loads(answer.body))).encode()
        return self._good(request, Plain(200, complete, answer.headers))

    async def reset(self, request: Request, dice: random.Random) -> Reply:
        end, when = dice.choice(("close", "reset")), dice.randrange(3)
        if when == 0:
            return Reply(b"", end)
        data = (await self._forward(request)).sent()
        return Reply(data[: dice.randrange(1, len(data))] if when == 1 else b"", end)

    async def slow(self, request: Request, dice: random.Random) -> Reply:
        # A plain overwrite that comes late replaces what was written in the meantime, here as at
        # DynamoDB: that is what `newest_wins` is for.
        is_late = dice.random() < 0.5 and request.operation != "BatchWriteItem"
        if is_late:
            await asyncio.sleep(self._plan.slow_s)
        answer = await self._forward(request)
        if not is_late:
            await asyncio.sleep(self._plan.slow_s)
        return Reply(answer.sent())

    async def delayed(self, request: Request, dice: random.Random) -> Reply:
        await asyncio.sleep(self._plan.delay_s * dice.random())
        return self._good(request, await self._forward(request))

    async def truncated(self, request: Request, dice: random.Random) -> Reply:
        answer = await self._forward(request)
        short = answer.body[: dice.randrange(len(answer.body))]
        if dice.random() < 0.5:
            return Reply(answer.sent(short))
        return Reply(answer.sent(short, len(answer.body)), "close")

    async def corrupted(self, request: Request, dice: random.Random) -> Reply:
        answer = await self._forward(request)
        corrupt = dice.choice((flipped, misspelt))
        return Reply(answer.sent(corrupt(answer.body, dice)))


async def main(backend: str) -> None:
    proxy = FaultServer(backend)
    for serve in (proxy.talk, proxy.control):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)  # what is still open is of no interest to anybody


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
