"""A model's hosts: the app, AWS's toolkit, AWS's model server, and what schemathesis finds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import urllib3
from model_server import free_ports, running
from served_model import CASES, Reply, ServedModel, check, make_model

from feast_dynamo_ext.sagemaker.serving.app import create_app
from feast_dynamo_ext.sagemaker.serving.handler import COUNTS_HEADER
from feast_dynamo_ext.sagemaker.serving.opening import open_handler

pytestmark = [pytest.mark.dynamodb_local, pytest.mark.server]

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
PATIENCE_S = 120
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory, dynamodb_local):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        made = make_model(
            tmp_path_factory.mktemp("model"), dynamodb_local, f"m{uuid.uuid4().hex[:12]}"
        )
        yield made
        made.store.teardown()


def post(http: urllib3.PoolManager, url: str, case) -> Reply:
    headers = {"Content-Type": case.content_type, "Accept": case.accept}
    headers = {name: value for name, value in headers.items() if value is not None}
    answer = http.request("POST", f"{url}/invocations", body=case.body, headers=headers)
    return Reply(
        answer.status,
        answer.data,
        answer.headers.get("content-type", ""),
        answer.headers.get(COUNTS_HEADER),
    )


@pytest.fixture(scope="module")
def http():
    with urllib3.PoolManager(retries=False, timeout=PATIENCE_S) as pool:
        yield pool


@pytest.fixture(scope="module")
def app_url(model):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with running(create_app(open_handler(model.folder))) as (url, _):
            yield url


@pytest.mark.parametrize("name", CASES)
def test_the_app(model, app_url, http, name):
    check(CASES[name], post(http, app_url, CASES[name]), model)


def test_the_app_has_the_contract_of_sagemaker(app_url, http):
    assert http.request("GET", f"{app_url}/ping").status == 200
    assert http.request("GET", f"{app_url}/execution-parameters").json() == {
        "MaxConcurrentTransforms": 8,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 0,
    }
    missing = http.request("GET", f"{app_url}/nowhere")
    assert missing.status == 404
    assert missing.json() == {"error": "There is no such path or method here."}
    refused = http.request("GET", f"{app_url}/invocations")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")


def test_the_page_asks_nothing_of_elsewhere(app_url, http):
    page = http.request("GET", f"{app_url}/docs").data.decode()
    assert "://" not in page.replace("http://www.w3.org", "")
    for path in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert path in page
        assert http.request("GET", f"{app_url}/static-offline-docs/{path}").status == 200


@pytest.mark.slow
def test_the_entry_point_of_the_container(model, http, tmp_path):
    """SageMaker runs the image with `serve`; here without docker, and on this machine alone."""
    text = (ROOT / "docs" / "snippets" / "serving" / "endpoint.dockerfile").read_text()
    (entry,) = (line for line in text.splitlines() if line.startswith("ENTRYPOINT "))
    name, *arguments = json.loads(entry.removeprefix("ENTRYPOINT "))
    assert name == "feast-dynamo"
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "feast_dynamo_ext.cli.main", *arguments, "serve"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"],
            env={
                **os.environ,
                **CREDENTIALS,
                "FEAST_DYNAMO_MODEL_DIR": str(model.folder),
                "SAGEMAKER_BIND_TO_PORT": str(port),
            },
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_answered(http, url, process, log)
        check(CASES["a list"], post(http, url, CASES["a list"]), model)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


# AWS's toolkit


@pytest.fixture(scope="module")
def transformer(model):
    """The toolkit's, with the archive's own module, and the context of a worker."""
    from mms.context import Context
    from sagemaker_inference.transformer import Transformer

    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("SAGEMAKER_PROGRAM", "serve_features.py")
        patch.syspath_prepend(str(model.folder / "code"))
        context = Context("model", str(model.folder), None, 1, None, "1.1.11")
        made = Transformer()
        made.validate_and_initialize(str(model.folder), context)
        yield made, context


@pytest.mark.parametrize("name", CASES)
def test_the_toolkit(model, transformer, name):
    from mms.context import RequestProcessor

    made, context = transformer
    case = CASES[name]
    headers = {"content-type": case.content_type, "accept": case.accept}
    headers = {key: value for key, value in headers.items() if value is not None}
    context.request_processor = [RequestProcessor(headers)]
    (body,) = made.transform([{"body": case.body}], context)
    data = body.encode() if isinstance(body, str) else body
    status, _ = context.get_response_status(0)
    found = context.get_response_headers(0)
    reply = Reply(status, data, found.get("content-type", ""), found.get(COUNTS_HEADER))
    check(case, reply, model, is_toolkit=True)


# AWS's model server


@pytest.fixture(scope="module")
def server_url(model: ServedModel, tmp_path_factory, http):
    """URL of multi-model-server, with one worker that has opened the archive."""
    if shutil.which("java") is None:
        if os.environ.get("CI"):
            pytest.fail("Java is missing")
        pytest.skip("missing: java")
    folder = tmp_path_factory.mktemp("server")
    ports = free_ports(2)
    config = folder / "config.properties"
    config.write_text(
        f"inference_address=http://127.0.0.1:{ports[0]}\n"
        f"management_address=http://127.0.0.1:{ports[1]}\n"
        "default_workers_per_model=1\ndecode_input_request=false\n"
        "default_service_handler=sagemaker_inference.default_handler_service\n"
    )
    code = [str(model.folder / "code"), *filter(None, sys.path)]
    command = [
        Path(sys.executable).parent / "multi-model-server",
        *("--start", "--foreground", "--model-store", "/", "--mms-config", config),
        *("--models", f"model={model.folder}"),
    ]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            **CREDENTIALS,
            "PYTHONPATH": os.pathsep.join(code),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SAGEMAKER_BASE_DIR": str(folder),
            "SAGEMAKER_PROGRAM": "serve_features.py",
            "TEMP": str(folder),
            "TMPDIR": str(folder),
        },
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{ports[0]}"
        wait_until_answered(http, url, process, folder / "log")
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE_S)
        log.close()


def wait_until_answered(http, url, process, log) -> None:
    """Its port opens when its worker has loaded the model."""
    some = urllib3.Retry(total=10, backoff_factor=0.1, backoff_max=0.3)
    answer = None
    while answer is None and process.poll() is None:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            answer = http.request("GET", f"{url}/ping", retries=some)
    assert answer is not None, log.read_text()[-4_000:]
    assert answer.status == 200


@pytest.mark.slow
def test_awss_model_server(model, server_url, http):
    wrong = []
    for name, case in CASES.items():
        try:
            check(case, post(http, server_url, case), model, is_toolkit=True)
        except AssertionError as error:  # noqa: PERF203 - all that is wrong, at once
            wrong.append(f"{name}: {error}")
    assert wrong == []


# What schemathesis generates


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_schemathesis(model, app_url):
    """Answers of generated requests are as the app's OpenAPI document says, none is a 5xx."""
    import hypothesis
    import schemathesis
    from hypothesis import HealthCheck
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{app_url}/openapi.json")
    operation = schema["/invocations"]["POST"]
    statuses = set()

    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def run(case) -> None:
        response = case.call()
        statuses.add(response.status_code)
        # A schema cannot say which texts are CSV; of JSON it says all, so what fits is accepted.
        beyond = [] if case.media_type == "application/json" else [positive_data_acceptance]
        case.validate_response(response, excluded_checks=beyond)
        assert response.status_code < 500, response.text

    run()
    assert 200 in statuses
