"""The handler as a FastAPI app: SageMaker's contract, and an OpenAPI page to try it on.

`serve` runs it with uvicorn, each worker a process with a store and a batcher of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.errors import (
    UNAVAILABLE,
    DependencyError,
    FeastDynamoError,
    InvocationError,
    ServingError,
)
from feast_dynamo_ext.sagemaker.serving.batching import MicroBatcher
from feast_dynamo_ext.sagemaker.serving.bodies import (
    BAD_SYNTAX,
    BAD_VALUE,
    CSV,
    JSON,
    JSON_LINES,
    NOT_ACCEPTABLE,
    TOO_LARGE,
    UNSUPPORTED,
    accepted_form,
    too_large,
)
from feast_dynamo_ext.sagemaker.serving.opening import open_handler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from feast_dynamo_ext.sagemaker.serving.handler import (
        Answer,
        FeatureHandler,
        Prediction,
        Received,
    )
    from feast_dynamo_ext.sagemaker.serving.serving_settings import ServingSettings

logger = logging.getLogger(__name__)

MODEL_DIR_VARIABLE = "FEAST_DYNAMO_MODEL_DIR"
PORT_VARIABLE = "SAGEMAKER_BIND_TO_PORT"
DEFAULT_MODEL_DIR, DEFAULT_PORT = "/opt/ml/model", 8080
WORKER_PATIENCE_S = 60
LONGEST_S = 55.0
"""Seconds that an answer may take; SageMaker gives up after 60."""


def serve(
    model_dir: str | Path, *, host: str = "127.0.0.1", port: int | None = None, workers: int = 1
) -> None:
    """Serve a packaged model until the process is stopped.

    Args:
        model_dir: where its archive was unpacked.
        host: address to listen on; in a container 0.0.0.0.
        port: by default SAGEMAKER_BIND_TO_PORT, else 8080.
        workers: processes; each imports Feast and opens the store.

    Raises:
        ServingError: the model cannot be served, or SAGEMAKER_BIND_TO_PORT is no port.
        DependencyError: the extra `serving` is not installed.
    """
    _require("uvicorn")
    import uvicorn

    chosen = port if port is not None else port_of_environment()
    # Opened here: an error ends the command with its words, before any worker starts.
    handler = open_handler(model_dir)
    if workers == 1:
        uvicorn.run(create_app(handler), host=host, port=chosen, log_level="warning")
        return
    handler.close()
    os.environ[MODEL_DIR_VARIABLE] = str(model_dir)
    uvicorn.run(
        f"{__name__}:app_of_environment",
        factory=True,
        host=host,
        port=chosen,
        workers=workers,
        # By default a worker that does not answer for 5 s is killed: on a busy machine each would
        # be while it imports Feast, for ever.
        timeout_worker_healthcheck=WORKER_PATIENCE_S,
        log_level="warning",
    )


def port_of_environment() -> int:
    """SAGEMAKER_BIND_TO_PORT, or 8080.

    Raises:
        ServingError: it is no port.
    """
    text = os.environ.get(PORT_VARIABLE, str(DEFAULT_PORT))
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise ServingError(f"{PORT_VARIABLE} is `{text}`; it must be a port from 1 to 65535.")
    return int(text)


def app_of_environment() -> FastAPI:
    """The app of the model in FEAST_DYNAMO_MODEL_DIR, by default /opt/ml/model.

    Raises:
        SystemExit: it cannot be served; a worker that is started again later may find that the
            definitions have changed meanwhile.
    """
    try:
        return create_app(open_handler(os.environ.get(MODEL_DIR_VARIABLE, DEFAULT_MODEL_DIR)))
    except FeastDynamoError as error:
        raise SystemExit(f"Error: {error}") from error


def _require(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise DependencyError(
            f"Serving needs {package}, which is not installed: "
            "pip install 'feast-dynamo-ext[serving]'"
        )


def create_app(handler: FeatureHandler) -> FastAPI:
    """The app of a handler, which it closes when it ends.

    Raises:
        DependencyError: the extra `serving` is not installed.
    """
    _require("fastapi_offline")
    from fastapi_offline import FastAPIOffline
    from starlette.exceptions import HTTPException
    from starlette.requests import Request as StarletteRequest
    from starlette.responses import Response

    answering = _Answering(handler)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await answering.close()

    app: FastAPI = FastAPIOffline(
        title=f"Model on {handler.settings.feature_service or 'features'}",
        description="Entity keys in, predictions out; the features are looked up here.",
        version="1",
        redoc_url=None,
        lifespan=lifespan,
        # Else the page has a server elsewhere judge the document.
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )

    def sent(answer: Answer) -> Response:
        return Response(
            answer.body, answer.status, dict(answer.headers), media_type=answer.content_type
        )

    @app.get(
        "/ping",
        summary="Whether the model answers",
        response_model=None,
        response_class=Response,
    )
    async def ping() -> Response:
        return Response(status_code=200)

    @app.get("/execution-parameters", summary="What batch transform should send")
    async def execution_parameters() -> dict[str, int | str]:
        return {
            "MaxConcurrentTransforms": 8,
            "BatchStrategy": "MULTI_RECORD",
            "MaxPayloadInMB": handler.settings.max_body_bytes // 2**20,
        }

    @app.get("/counters", summary="What this worker has answered since its start")
    async def counters() -> dict[str, int]:
        return {"process": os.getpid(), **handler.counters}

    async def invocations(request: Request) -> Response:
        return sent(await answering.answer(request))

    # FastAPI reads the annotation, and finds no name that is imported here.
    invocations.__annotations__ = {"request": StarletteRequest}
    app.add_api_route(
        "/invocations",
        invocations,
        methods=["POST"],
        summary="Predict",
        responses=_responses(),
        response_model=None,
        response_class=Response,
        openapi_extra={"requestBody": _request_body(handler.settings)},
    )

    @app.exception_handler(HTTPException)
    async def no_such(_: Request, error: HTTPException) -> Response:
        answer = handler.refused(
            InvocationError("There is no such path or method here.", error.status_code)
        )
        response = sent(answer)
        response.headers.update(error.headers or {})
        return response

    return app


class _Answering:
    """Bodies read, batched and answered on the event loop."""

    def __init__(self, handler: FeatureHandler) -> None:
        self._handler = handler
        limits = handler.settings
        self._batcher: MicroBatcher[Received, Prediction] | None = None
        if limits.max_wait_ms is not None:
            self._batcher = MicroBatcher(
                handler.predict_async,
                max_wait_s=limits.max_wait_ms / 1_000,
                max_batch_rows=limits.max_batch_rows,
                max_queued_rows=limits.max_queued_rows,
            )

    async def answer(self, request: Request) -> Answer:
        handler, started = self._handler, time.monotonic()
        try:
            form = accepted_form(request.headers.get("accept"))
            prediction = await asyncio.wait_for(self._requested(request), LONGEST_S)
            return handler.answered(prediction, form, started)
        except asyncio.TimeoutError:
            words = f"There was no answer within {LONGEST_S:.0f} s. Try again later."
            return handler.refused(InvocationError(words, UNAVAILABLE))
        except Exception as error:  # noqa: BLE001 - an answer, never a traceback
            return handler.refused(error)

    async def _requested(self, request: Request) -> Prediction:
        headers, handler = request.headers, self._handler
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise InvocationError(
                "The body has a Content-Encoding. Send it as it is, not compressed.", UNSUPPORTED
            )
        body = await _body(request, handler.settings.max_body_bytes)
        return await self._predicted(handler.receive(body, headers.get("content-type")))

    async def _predicted(self, received: Received) -> Prediction:
        if self._batcher is not None:
            return await self._batcher.submit(received, received.rows.count)
        return (await self._handler.predict_async([received]))[0]

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        await self._handler.close_async()


async def _body(request: Request, most: int) -> bytes:
    """A body, of which no more than the limit is kept in memory."""
    from starlette.requests import ClientDisconnect

    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large(most)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large(most)
            parts.append(part)
    except ClientDisconnect as error:
        raise InvocationError("The connection was closed before the body's end.") from error
    return b"".join(parts)


# OpenAPI

_JSON_TYPES: dict[str, dict[str, Any]] = {
    # Bounds that a double holds: readers of JSON make others of those of 64 bits.
    "int": {"type": "integer", "minimum": -(2**63) + 1_024, "maximum": 2**63 - 1_024},
    "float": {"type": "number"},
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "time": {"type": "string", "format": "date-time"},
}
_EXAMPLES = {
    "int": 1,
    "float": 0.5,
    "string": "a",
    "boolean": True,
    "time": "2026-01-31T12:00:00Z",
}


def _request_body(settings: ServingSettings) -> dict[str, Any]:
    columns = settings.columns
    properties = {
        column.name: {
            **_JSON_TYPES[column.kind],
            **({"nullable": True} if column.nullable else {}),
        }
        for column in columns
    }
    row = {
        "type": "object",
        "properties": {
            name: _nullable(kind) if kind.pop("nullable", False) else kind
            for name, kind in properties.items()
        },
        "required": [column.name for column in columns],
        "additionalProperties": False,
    }
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": settings.max_rows}
    instances = {
        "type": "object",
        "properties": {"instances": rows},
        "required": ["instances"],
        "additionalProperties": False,
    }
    example = {column.name: _EXAMPLES[column.kind] for column in columns}
    header = ",".join(example)
    cells = ",".join(str(value) for value in example.values())
    return {
        "required": True,
        "content": {
            JSON: {
                "schema": {"anyOf": [instances, rows, row]},
                "example": {"instances": [example]},
            },
            JSON_LINES: {"schema": {"type": "string"}},
            CSV: {"schema": {"type": "string"}, "example": f"{header}\n{cells}\n"},
        },
    }


def _nullable(kind: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [kind, {"type": "null"}]}


_ERRORS = {
    BAD_SYNTAX: "the body cannot be parsed",
    NOT_ACCEPTABLE: "no form of `Accept` is known here",
    TOO_LARGE: "too many bytes or rows",
    UNSUPPORTED: "another content type",
    BAD_VALUE: "a row lacks a column, has another, or holds a wrong value",
    500: "the model failed",
    503: "the features could not be read, or too much waits",
}


def _responses() -> dict[int | str, dict[str, Any]]:
    counts = {"type": "object", "additionalProperties": {"type": "integer"}}
    answer = {
        "type": "object",
        "properties": {
            "predictions": {
                "type": "array",
                "items": {"type": "object", "properties": {"score": {}}, "required": ["score"]},
            },
            "features": {
                "type": "object",
                "properties": {"missing": counts, "expired": counts, "unread": counts},
                "required": ["missing", "expired", "unread"],
            },
        },
        "required": ["predictions", "features"],
    }
    error = {
        "type": "object",
        "properties": {"error": {"type": "string"}},
        "required": ["error"],
    }
    text = {"schema": {"type": "string"}}
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "a prediction a row, in order",
            "content": {JSON: {"schema": answer}, JSON_LINES: text, CSV: text},
        }
    }
    for status, description in _ERRORS.items():
        found[status] = {"description": description, "content": {JSON: {"schema": error}}}
    return found
