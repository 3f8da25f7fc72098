"""A started server is healthy or an error with its log, and never outlives whoever started it.

The server here is ten lines of Python with vLLM's `/health`; tests/real_server starts the real one.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx2
import pytest

from aipo.engines.base import EngineError
from aipo.engines.vllm_server import ServerPlan, VllmServer, start_together

SERVER = """
import http.server, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
starts = folder / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
if "dies" in sys.argv or "dies-once" in sys.argv and starts.read_text() == "x":
    print("out of memory, or so"); sys.exit(7)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "child").write_text(str(child.pid))
if "sleeps" in sys.argv: time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def plan_of(folder: Path, *words: str, timeout_s: float = 30.0) -> ServerPlan:
    script = folder / "server.py"
    script.write_text(SERVER)
    command = (sys.executable, str(script), str(folder), *words)
    return ServerPlan(
        command=command,
        log=folder / "logs" / "policy-server.log",
        start_timeout_s=timeout_s,
        environment={"TRY": "1"},
    )


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie without a parent that waits has."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_server_is_healthy_when_start_returns_and_all_of_it_is_gone_after_stop(tmp_path: Path) -> None:
    server = VllmServer(plan_of(tmp_path))
    server.start()
    assert httpx2.get(f"{server.url}/health", trust_env=False).status_code == 200
    assert server.url.startswith("http://127.0.0.1:")
    child = int((tmp_path / "child").read_text())
    assert not server.ended()
    server.stop()
    server.stop()
    assert is_gone(child)
    assert "server.py" in (tmp_path / "logs" / "policy-server.log").read_text()


def test_several_servers_start_together_and_none_is_taken_for_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's variables would make a server take itself for one of its processes."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    servers = [VllmServer(plan_of(folder)) for folder in folders]
    start_together(servers)
    assert len({server.url for server in servers}) == 2
    for server, folder in zip(servers, folders, strict=True):
        assert httpx2.get(f"{server.url}/health", trust_env=False).status_code == 200
        child = int((folder / "child").read_text())
        inherited = Path(f"/proc/{child}/environ").read_text()
        assert "VLLM_SERVER_DEV_MODE=1" in inherited
        assert not any(name in inherited for name in ("RANK=", "WORLD_SIZE=", "TORCHELASTIC"))
        server.stop()
        assert is_gone(child)


def test_a_start_that_dies_is_tried_once_more_and_its_log_is_kept(tmp_path: Path) -> None:
    server = VllmServer(plan_of(tmp_path, "dies-once"))
    server.start()
    server.stop()
    assert (tmp_path / "starts").read_text() == "xx"
    assert "out of memory" in (tmp_path / "logs" / "policy-server.died.log").read_text()


def test_a_server_that_always_dies_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="ended with status 7 while it started") as error:
        VllmServer(plan_of(tmp_path, "dies")).start()
    assert "out of memory, or so" in str(error.value) and "policy-server.log" in str(error.value)
    assert (tmp_path / "starts").read_text() == "xx"


def test_a_server_that_is_never_ready_is_ended_at_its_deadline(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(EngineError, match="not ready within engine.start_timeout_s = 3 s"):
        VllmServer(plan_of(tmp_path, "sleeps", timeout_s=3.0)).start()
    assert time.monotonic() - begun < 10
    assert is_gone(int((tmp_path / "child").read_text()))


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    plan = ServerPlan(
        command=("/nowhere/vllm", "serve"),
        log=tmp_path / "policy-server.log",
        start_timeout_s=20.0,
        environment={},
    )
    with pytest.raises(EngineError, match="/nowhere/vllm"):
        VllmServer(plan).start()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_does_not_outlive_a_killed_run(tmp_path: Path, number: signal.Signals) -> None:
    plan = plan_of(tmp_path)
    run = f"""
        import signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from pathlib import Path
        from aipo.engines.vllm_server import ServerPlan, VllmServer, start_together
        plan = ServerPlan(
            command={plan.command!r}, log=Path({str(plan.log)!r}), start_timeout_s=30.0, environment={{}}
        )
        server = VllmServer(plan)
        server.start()
        print(server.url, flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(run)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    child = int((tmp_path / "child").read_text())
    assert httpx2.get(f"{url}/health", trust_env=False).status_code == 200
    os.kill(process.pid, number)
    process.wait(10)
    process.stdout.close()
    assert is_gone(child)
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(f"{url}/health", trust_env=False)


def test_a_keeper_whose_parent_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    keeper = [sys.executable, "-m", "aipo.engines.keeper", str(gone.pid)]
    ended = subprocess.run([*keeper, "touch", str(begun)], timeout=30, check=False)
    assert ended.returncode == 1 and not begun.exists()
