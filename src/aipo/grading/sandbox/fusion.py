"""SandboxFusion: programs run by a server of that name over HTTP, and are graded here.

Whatever is wrong with the server is SANDBOX_ERROR, never the program's doing. `/submit`, which would grade
over there, is never called.

The server's container is the wall: by default it isolates nothing from its own environment, files and network
(https://github.com/bytedance/SandboxFusion, README). Give it a container without either.
"""

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

from aipo.grading.sandbox.base import Backend, Limits, Outcome, Program, Run, SandboxError

_GRACE_S = 15.0
_ENVELOPE_BYTES = 1 << 16
# JSON writes a byte as up to six characters.
_ESCAPE = 6


class SandboxFusion:
    """Programs run by the server at `url`.

    Raises:
        SandboxError: the URL is empty or not HTTP. That a server answers there is not known yet.
    """

    backend = Backend.SANDBOXFUSION

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SandboxError(
                f"sandbox.url = {url!r}: must be the address of a SandboxFusion server, such as"
                " http://127.0.0.1:8080"
            )
        self._parts = parts
        self.description = f"sandboxfusion at {parts.scheme}://{parts.netloc} (its container is the wall)"

    def run(self, program: Program, limits: Limits) -> Run:
        """Run a program to its end; a server that is out of reach is SANDBOX_ERROR."""
        body = json.dumps(
            {
                "code": program.source,
                "language": "python",
                "stdin": program.stdin,
                "run_timeout": limits.cpu_s + limits.wall_s,
                "compile_timeout": limits.wall_s,
                "memory_limit_MB": limits.memory_mb,
            }
        ).encode()
        started = time.monotonic()
        try:
            reply = self._post(body, limits, started + limits.cpu_s + limits.wall_s + _GRACE_S)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            return Run(outcome=Outcome.SANDBOX_ERROR, detail=f"{type(error).__name__}: {error}"[:300])
        if reply is None:
            return Run(outcome=Outcome.OUTPUT_LIMIT, wall_s=time.monotonic() - started)
        return _read_reply(reply, limits, time.monotonic() - started)

    def _post(self, body: bytes, limits: Limits, deadline: float) -> Any:
        """Return the parsed answer, None when it is longer than any that could be read."""
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(
            str(self._parts.hostname), self._parts.port, timeout=max(1, deadline - time.monotonic())
        )
        try:
            path = f"{self._parts.path.rstrip('/')}/run_code"
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise OSError(f"HTTP {response.status} from {path}")
            most = _ESCAPE * limits.output_bytes + _ENVELOPE_BYTES
            read = bytearray()
            while chunk := response.read1(1 << 16):
                read += chunk
                if len(read) > most:
                    return None
                if time.monotonic() > deadline:
                    raise TimeoutError("the server's answer does not end")
            return json.loads(read)
        finally:
            connection.close()


def _read_reply(reply: Any, limits: Limits, wall_s: float) -> Run:
    result = reply.get("run_result") if isinstance(reply, dict) else None
    if not isinstance(result, dict) or reply.get("status") not in ("Success", "Failed"):
        said = (
            str(reply.get("message") or reply.get("status"))[:200] if isinstance(reply, dict) else "no object"
        )
        return Run(outcome=Outcome.SANDBOX_ERROR, wall_s=wall_s, detail=f"the server says: {said}")
    spent = result.get("execution_time")
    cpu_s = float(spent) if isinstance(spent, int | float) else wall_s
    stdout = str(result.get("stdout") or "").encode("utf-8", "replace")
    if len(stdout) > limits.output_bytes:
        return Run(outcome=Outcome.OUTPUT_LIMIT, wall_s=wall_s, cpu_s=cpu_s)
    code = result.get("return_code")
    if result.get("status") == "TimeLimitExceeded":
        # The CPU share of it is unknown: as if all of it was, so that it is not repeated.
        return Run(outcome=Outcome.WALL_LIMIT, stdout=stdout, wall_s=wall_s, cpu_s=limits.cpu_s)
    if result.get("status") not in ("Finished", "Error") or not isinstance(code, int):
        return Run(
            outcome=Outcome.SANDBOX_ERROR, wall_s=wall_s, detail=f"the server ran nothing: {result}"[:200]
        )
    number = -code if code < 0 else code - 128 if code > 128 else 0
    outcome = Outcome.SIGNALLED if number else Outcome.EXITED
    return Run(outcome=outcome, stdout=stdout, status=number or code, wall_s=wall_s, cpu_s=cpu_s)
