"""The handler as AWS's inference toolkit calls it, in a container with multi-model-server.

A model's archive has a module with these two functions in its `code/` folder, which the toolkit
loads as the user's. The toolkit puts a traceback behind the message of any error that is raised:
so none is, the status is set on the request's context instead. Toolkits before 1.6 pass no
context; there its own error says the status, and the traceback with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.sagemaker.serving.opening import open_handler

if TYPE_CHECKING:
    from feast_dynamo_ext.sagemaker.serving.handler import Answer, FeatureHandler


def model_fn(model_dir: str) -> FeatureHandler:
    """Open the packaged model, once a worker.

    Raises:
        ServingError: see `open_handler`; the worker does not start.
    """
    return open_handler(model_dir)


def transform_fn(
    model: FeatureHandler,
    input_data: bytes | str,
    content_type: str | None,
    accept: str | None,
    context: Any = None,
) -> tuple[bytes, str]:
    """Answer a request: its body, and its content type."""
    body = input_data.encode() if isinstance(input_data, str) else bytes(input_data or b"")
    answer = model.answer(body, content_type, accept)
    if context is None:
        return _without_context(answer)
    for name, value in answer.headers.items():
        context.set_response_header(0, name, value)
    if answer.status != 200:  # noqa: PLR2004 - HTTP's own
        context.set_response_status(answer.status, "Refused")
    return answer.body, answer.content_type


def _without_context(answer: Answer) -> tuple[bytes, str]:
    if answer.status == 200:  # noqa: PLR2004
        return answer.body, answer.content_type
    from sagemaker_inference.errors import GenericInferenceToolkitError

    raise GenericInferenceToolkitError(answer.status, answer.body.decode())
