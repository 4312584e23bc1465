"""A SageMaker and a CloudWatch Logs that answer from a script: what moto has no stages for."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACCOUNT = "arn:aws:sagemaker:us-east-1:123456789012:training-job"
Stage = tuple[str, str]  # of TrainingJobStatus and SecondaryStatus


class JobServer:
    """Jobs go through `stages`, one a look; each look also lets `lines_a_look` lines be read.

    Attributes:
        stages: of each job, the last of which stays.
        lines: of the log, by host.
        faults: (operation, code) that are answered first, once each, in order.
        extra: what else the description of a job that has ended has.
        requests: operation and body of all that came.
    """

    def __init__(self, stages: list[Stage], lines: dict[str, list[str]] | None = None) -> None:
        self.stages, self.lines = stages, lines or {}
        self.faults: list[tuple[str, str]] = []
        self.extra: dict = {}
        self.requests: list[tuple[str, dict]] = []
        self.jobs: dict[str, dict] = {}
        self.looks: dict[str, int] = {}
        self.lines_a_look = 2
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                operation = self.headers["X-Amz-Target"].rpartition(".")[2]
                status, answer = server.answer(operation, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

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

    def answer(self, operation: str, body: dict) -> tuple[int, dict]:
        self.requests.append((operation, body))
        if self.faults and self.faults[0][0] == operation:
            return 400, {"__type": self.faults.pop(0)[1], "message": "said the script"}
        return getattr(self, operation)(body)

    def CreateTrainingJob(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        name = body["TrainingJobName"]
        if name in self.jobs:
            return 400, {"__type": "ResourceInUse", "message": "Training job names must be unique"}
        self.jobs[name] = body
        return 200, {"TrainingJobArn": f"{ACCOUNT}/{name}"}

    def DescribeTrainingJob(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        name = body["TrainingJobName"]
        if name not in self.jobs:
            said = "Requested resource not found."
            return 400, {"__type": "ValidationException", "message": said}
        look = self.looks.get(name, 0)
        self.looks[name] = look + 1
        status, secondary = self.stages[min(look, len(self.stages) - 1)]
        request = {key: value for key, value in self.jobs[name].items() if key != "Tags"}
        ended = self.extra if status in ("Completed", "Failed", "Stopped") else {}
        return 200, request | {
            "TrainingJobArn": f"{ACCOUNT}/{name}",
            "TrainingJobStatus": status,
            "SecondaryStatus": secondary,
            "CreationTime": 1.0,
            **ended,
        }

    def _shown(self, host: str, job: str) -> list[str]:
        return self.lines[host][: self.looks.get(job, 0) * self.lines_a_look]

    def DescribeLogStreams(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        assert body["logGroupName"] == "/aws/sagemaker/TrainingJobs"
        names = sorted(f"{body['logStreamNamePrefix']}{host}-1690000000" for host in self.lines)
        start = int(body.get("nextToken", "0"))
        more = {"nextToken": str(start + 1)} if start + 1 < len(names) else {}
        return 200, {"logStreams": [{"logStreamName": n} for n in names[start:][:1]]} | more

    def GetLogEvents(self, body: dict) -> tuple[int, dict]:  # noqa: N802 - as AWS calls it
        job, _, stream = body["logStreamName"].partition("/")
        start = int(body.get("nextToken", "f/0").removeprefix("f/"))
        page = self._shown(stream.rpartition("-")[0], job)[start:][:2]
        return 200, {
            "events": [{"timestamp": 1, "message": text, "ingestionTime": 1} for text in page],
            "nextForwardToken": f"f/{start + len(page)}",
            "nextBackwardToken": "b/0",
        }
