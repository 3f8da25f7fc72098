"""A SandboxFusion server for tests: its `/run_code`, with this machine's own sandbox as the container.

Not covered: other languages, file transfer, `/submit`, compile steps. `misbehave` makes it answer like a
broken one.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aipo.grading.sandbox.base import Limits, Outcome, Program, Sandbox

STATUS = {Outcome.EXITED: "Finished", Outcome.SIGNALLED: "Error", Outcome.WALL_LIMIT: "TimeLimitExceeded"}


class FusionTwin:
    """Serves on 127.0.0.1 until closed."""

    def __init__(self, container: Sandbox, limits: Limits | None = None) -> None:
        self.container, self.limits = container, limits or Limits()
        self.misbehave = ""
        self.requests: list[dict[str, Any]] = []
        twin = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                twin.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        self.requests.append(request)
        if self.misbehave == "http 500":
            handler.send_error(500)
            return
        body = self._broken() if self.misbehave else json.dumps(self._run(request)).encode()
        handler.send_response(200)
        handler.end_headers()
        if self.misbehave == "drops":
            handler.close_connection = True
            handler.connection.close()
            return
        handler.wfile.write(body)

    def _broken(self) -> bytes:
        if self.misbehave == "hangs":
            time.sleep(60)
        told = {"status": "SandboxError", "message": "no container", "run_result": None, "files": {}}
        return json.dumps(told).encode() if self.misbehave == "SandboxError" else b"<html>garbage"

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        assert handler_is_for_python(request)
        run = self.container.run(Program(request["code"], request.get("stdin") or ""), self.limits)
        if run.outcome is Outcome.SANDBOX_ERROR:
            return {"status": "SandboxError", "message": run.detail, "run_result": None, "files": {}}
        result = {
            "status": STATUS.get(run.outcome, "Error"),
            "execution_time": run.wall_s,
            "return_code": -run.status if run.outcome is Outcome.SIGNALLED else run.status,
            "stdout": run.stdout.decode("utf-8", "replace"),
            "stderr": "",
        }
        if run.outcome in (Outcome.CPU_LIMIT, Outcome.OUTPUT_LIMIT):
            result["return_code"] = -9
        status = "Success" if run.outcome is Outcome.EXITED and not run.status else "Failed"
        return {"status": status, "message": "", "run_result": result, "files": {}}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def handler_is_for_python(request: dict[str, Any]) -> bool:
    return request["language"] == "python" and request.keys() <= {
        *("code", "language", "stdin", "run_timeout", "compile_timeout", "memory_limit_MB"),
    }
