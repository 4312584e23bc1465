"""Glue, EMR Serverless, SageMaker Processing and their logs that answer from a script.

What moto has no stages, faults, lost answers or logs for. One job is enough: each of its runs goes
through the same `states`, one a look.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

EMR_PATH = re.compile(r"/applications/(\w+)/jobruns(?:/(\w+))?")


class SubmitServer:
    """See the module.

    Attributes:
        states: of a run, the last of which stays.
        extra: what else a run that has ended has.
        lines: of the log of each stream, all readable from the first look on.
        faults: (operation, code) that are answered first, once each, in order; the code None
            carries the operation out, and drops the connection in place of an answer.
        requests: operation and body of all that came.
        jobs: requests by the name of what was made with them.
    """

    def __init__(self, states: list[str]) -> None:
        self.states = states
        self.extra: dict = {}
        self.lines: dict[str, list[str]] = {}
        self.faults: list[tuple[str, str | None]] = []
        self.requests: list[tuple[str, dict]] = []
        self.jobs: dict[str, dict] = {}
        self.runs: list[str] = []
        self.tokens: dict[str, str] = {}
        self.looks, self.has_ended = 0, False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.loads(text) if text else {}
                target = self.headers.get("X-Amz-Target")
                found = server.answer(*operation_of(self.command, self.path, target, body))
                if found is None:
                    self.close_connection = True
                    return
                status, answer = found
                data = json.dumps(answer).encode()
                self.send_response(status)
                if status != 200:
                    self.send_header("x-amzn-ErrorType", answer["__type"])
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_DELETE = do_POST  # noqa: N815 - as http.server calls them

            def log_message(self, *args) -> None:
                """Nothing is logged."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def count(self, operation: str) -> int:
        return sum(one == operation for one, _ in self.requests)

    def answer(self, operation: str, body: dict) -> tuple[int, dict] | None:
        self.requests.append((operation, body))
        if self.faults and self.faults[0][0] == operation:
            code = self.faults.pop(0)[1]
            if code is None:
                getattr(self, operation)(body)
                return None
            return refusal(code, "said the script")
        return getattr(self, operation)(body)

    def _state(self) -> dict:
        state = self.states[min(self.looks, len(self.states) - 1)]
        self.looks += 1
        self.has_ended = self.looks >= len(self.states)
        return {"state": state, **(self.extra if self.looks >= len(self.states) else {})}

    # Glue

    def GetJob(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        if body["JobName"] not in self.jobs:
            return refusal("EntityNotFoundException", "no such job")
        return 200, {"Job": {"Name": body["JobName"]}}

    def CreateJob(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        if body["Name"] in self.jobs:
            return refusal("AlreadyExistsException", "there is such a job")
        self.jobs[body["Name"]] = body
        return 200, {"Name": body["Name"]}

    def StartJobRun(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        if "applicationId" in body:
            token = body["clientToken"]
            if token not in self.tokens:
                self.tokens[token] = str(len(self.tokens) + 1)
                self._next(self.tokens[token])
                self.jobs[self.tokens[token]] = body
            run = self.tokens[token]
            arn = f"arn:aws:emr-serverless:us-east-1:123456789012:/applications/00f/jobruns/{run}"
            return 200, {"applicationId": "00f", "jobRunId": run, "arn": arn}
        if body["JobName"] not in self.jobs:
            return refusal("EntityNotFoundException", "no such job")
        if self.runs and not self.has_ended:
            return refusal("ConcurrentRunsExceededException", "one is running")
        self._next(f"jr_{len(self.runs) + 1}")
        return 200, {"JobRunId": self.runs[-1]}

    def _next(self, run: str) -> None:
        self.runs.append(run)
        self.looks, self.has_ended = 0, False

    def GetJobRuns(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        if body["JobName"] not in self.jobs:
            return refusal("EntityNotFoundException", "no such job")
        state = self.states[-1] if self.has_ended else "RUNNING"
        runs = [{"Id": run, "JobRunState": state} for run in reversed(self.runs)]
        return 200, {"JobRuns": runs}

    def GetJobRun(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        found = self._state()
        run = {
            "Id": body["RunId"],
            "JobRunState": found.pop("state"),
            "LogGroupName": "/aws-glue/jobs/",
        }
        return 200, {"JobRun": {**run, "ExecutionTime": 61, **found}}

    def BatchStopJobRun(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        return 200, {"SuccessfulSubmissions": [], "Errors": []}

    # EMR Serverless

    def ListJobRuns(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        names = {run: self.jobs[run]["name"] for run in self.runs}
        runs = [{"id": run, "name": names[run], "createdAt": float(run)} for run in names]
        return 200, {"jobRuns": [{"id": "0", "name": "other", "createdAt": 9.0}, *runs]}

    def GetEmrRun(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        return 200, {"jobRun": {**self._state(), "totalExecutionDurationSeconds": 61}}

    def CancelJobRun(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        return 200, body

    # SageMaker

    def CreateProcessingJob(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        name = body["ProcessingJobName"]
        if name in self.jobs:
            return refusal("ResourceInUse", "names must be unique")
        self.jobs[name] = body
        self._next(name)
        arn = f"arn:aws:sagemaker:us-east-1:123456789012:processing-job/{name}"
        return 200, {"ProcessingJobArn": arn}

    def DescribeProcessingJob(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        if body["ProcessingJobName"] not in self.jobs:
            return refusal("ValidationException", "Could not find requested job")
        found = self._state()
        job = {"ProcessingJobName": body["ProcessingJobName"], "ProcessingStartTime": 1.0}
        return 200, {**job, "ProcessingJobStatus": found.pop("state"), **found}

    def ListProcessingJobs(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        names = [name for name in self.runs if body["NameContains"] in name]
        found = [
            {"ProcessingJobName": name, "CreationTime": float(at)} for at, name in enumerate(names)
        ]
        return 200, {"ProcessingJobSummaries": found[::-1]}

    def StopProcessingJob(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        return 200, {}

    # CloudWatch Logs

    def DescribeLogStreams(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        place = f"{body['logGroupName']} {body['logStreamNamePrefix']}"
        names = [name.split(" ")[1] for name in self.lines if name.startswith(place)]
        return 200, {"logStreams": [{"logStreamName": name} for name in names]}

    def GetLogEvents(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        start = int(body.get("nextToken", "f/0").removeprefix("f/"))
        page = self.lines[f"{body['logGroupName']} {body['logStreamName']}"][start:]
        return 200, {
            "events": [{"timestamp": 1, "message": text, "ingestionTime": 1} for text in page],
            "nextForwardToken": f"f/{start + len(page)}",
            "nextBackwardToken": "b/0",
        }


def operation_of(method: str, path: str, target: str | None, body: dict) -> tuple[str, dict]:
    """The operation of a request, and its body with what its path says."""
    if target is not None:
        return target.rpartition(".")[2], body
    found = EMR_PATH.match(path)
    assert found is not None, path
    application, run = found.groups()
    by_method = {"POST": "StartJobRun", "GET": "GetEmrRun", "DELETE": "CancelJobRun"}
    operation = by_method[method] if run or method == "POST" else "ListJobRuns"
    return operation, {**body, "applicationId": application, **({"jobRunId": run} if run else {})}


def refusal(code: str, message: str) -> tuple[int, dict]:
    return 400, {"__type": code, "message": message, "Message": message}
