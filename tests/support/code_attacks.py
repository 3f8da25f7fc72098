"""Programs that try to be graded CORRECT without solving anything, or to leave the sandbox.

Each defines `f`; the tests are `f(1)` and `f(2)`, whose expected values are a secret text drawn for each run.
The text also stands in a file, in the environment, in another process's memory and behind a socket of this
machine, so that whoever gets out is CORRECT. Whatever an attack leaves behind has MARK in its name. `@NAME@`
is filled in by the test.
"""

MARK = "aipo-attack"

_FIND = """
def found(texts):
    for text in texts:
        at = text.find("secret-")
        if at >= 0:
            return text[at:at + 39]
"""

FORGERY = {
    "always_true_eq": """
class Same:
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __hash__ = lambda self: 0
f = lambda n: Same()
""",
    "subclass_of_str": """
class Same(str):
    __eq__ = lambda self, other: True
    __hash__ = str.__hash__
f = lambda n: Same("x")
""",
    "subclasses_in_collections": """
class Same(int):
    __eq__ = lambda self, other: True
    __hash__ = int.__hash__
class All(list):
    __eq__ = lambda self, other: True
f = lambda n: All([Same(1)]) if n == 1 else {Same(1): (Same(2),)}
""",
    "frame_walking": _FIND
    + """
import sys
def f(n):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            if got := found([str(v) for v in list(scope.values())]):
                return got
        frame = frame.f_back
""",
    "searching_all_objects": _FIND
    + """
import gc
def f(n):
    texts = [o for o in gc.get_objects() if isinstance(o, str)]
    for o in gc.get_objects():
        if isinstance(o, (dict, list, tuple)):
            texts += [x for x in (o.values() if isinstance(o, dict) else o) if isinstance(x, str)]
    return found(t for t in texts if "found(texts)" not in t)
""",
    "exit_before_tests": "import os\nos._exit(0)",
    "sys_exit_before_tests": "import sys\nsys.exit(0)",
    "exit_inside_a_test": "def f(n):\n    raise SystemExit(0)",
    "forged_lines": """
import os
for fd in range(64):
    for text in (b'{"v": true}\\n{"v": true}\\n', b"passed\\n", b"CORRECT\\n"):
        try: os.write(fd, text)
        except OSError: pass
os._exit(0)
""",
    "forged_lines_then_honest_ones": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"v": null}\\n' * 2)
    except OSError: pass
f = lambda n: None
""",
    "patched_builtins": """
import builtins, json, math, os
builtins.eval = lambda *a: True
builtins.repr = builtins.str = lambda *a: "passed"
builtins.all = builtins.any = lambda *a: True
builtins.len = lambda x: 2
json.dumps = lambda *a, **k: '{"v": true}'
math.isclose = lambda *a, **k: True
f = lambda n: 0
""",
    "patched_harness": """
import sys
main = sys.modules["__main__"]
for name in list(vars(main)):
    if callable(getattr(main, name)) and name not in ("serve", "__builtins__"):
        setattr(main, name, lambda *a, **k: '{"v": true}')
f = lambda n: 0
""",
    "patched_checker": """
import sys, types
for name in ("aipo", "aipo.grading", "aipo.grading.code_check", "aipo.grading.code_values"):
    fake = sys.modules[name] = types.ModuleType(name)
    fake.matches = fake.same_output = fake.check = lambda *a, **k: True
try:
    import aipo.grading.code_values as values
    values.matches = lambda *a: True
except ImportError: pass
f = lambda n: 0
""",
    "tracing_the_harness": """
import sys
def trace(frame, event, argument):
    for name in list(frame.f_locals):
        frame.f_locals[name] = True
    return trace
sys.settrace(trace); sys.setprofile(trace)
f = lambda n: 0
""",
    "atexit": """
import atexit, os
atexit.register(lambda: os.write(1, b'{"v": true}\\n{"v": true}\\n'))
f = lambda n: 0
""",
    "redirected_stdout": """
import os, sys, io
sys.stdout = sys.__stdout__ = io.StringIO()
for fd in range(3, 64):
    try: os.dup2(fd, 1)
    except OSError: pass
print('{"v": true}\\n{"v": true}', flush=True)
f = lambda n: 0
""",
    "closed_channel": "import os\nos.closerange(0, 64)\nf = lambda n: 0",
    "pickle": """
import os, pickle
class Evil:
    def __reduce__(self): return (os.system, ("touch /tmp/@MARK@-pickle",))
def f(n):
    for fd in range(3, 64):
        try: os.write(fd, pickle.dumps(Evil()) + b"\\n")
        except OSError: pass
    return Evil()
""",
    "unicode": """
import sys
def f(n):
    return "\\ud800\\u2028\\u202e\\x00{\\"v\\": true}\\r" * n
""",
    "deep_line": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"v": ' + b"[" * 60_000)
    except OSError: pass
os._exit(0)
""",
    "deep_value": """
def f(n):
    value = []
    for _ in range(50_000): value = [value]
    return value
""",
    "equal_hashes": "f = lambda n: {k * (2**61 - 1) for k in range(1, 30_000)}",
    "equal_hashes_in_a_forged_line": """
import os
line = '{"v": {"s": [' + ",".join('{"i": "%#x"}' % (k * (2**61 - 1)) for k in range(1, 7_000)) + "]}}\\n"
for fd in range(3, 64):
    try: os.write(fd, line.encode())
    except OSError: pass
os._exit(0)
""",
    "giant_integer": "f = lambda n: 1 << 3_000_000",
    "truthiness": """
class Yes:
    __bool__ = lambda self: True
    __len__ = lambda self: 1
f = lambda n: Yes()
""",
}

ESCAPE = {
    "environment": _FIND
    + """
import os
f = lambda n: found([os.environ.get("AIPO_SECRET", ""), *os.environ.values()])
""",
    "host_file": "f = lambda n: open('@FILE@').read()",
    "host_file_by_link": """
import os
def f(n):
    for make in (os.symlink, os.link):
        try:
            if os.path.lexists("/tmp/@MARK@-link"): os.unlink("/tmp/@MARK@-link")
            make("@FILE@", "/tmp/@MARK@-link")
            return open("/tmp/@MARK@-link").read()
        except OSError: pass
""",
    "proc": _FIND
    + """
import os
def f(n):
    for pid in ("self", "1", str(os.getppid()), "@PID@"):
        for name in ("environ", "cmdline", "mem", "maps", "root/@FILE@", "cwd"):
            try:
                if got := found([open(f"/proc/{pid}/{name}", errors="replace").read(1 << 20)]): return got
            except (OSError, ValueError): pass
""",
    "tcp": """
import socket
def f(n):
    with socket.create_connection(("127.0.0.1", @PORT@), 2) as s: return s.recv(100).decode()
""",
    "unix_socket": """
import socket
def f(n):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("@SOCKET@")
        return s.recv(100).decode()
""",
    "ptrace_and_foreign_memory": _FIND
    + """
import ctypes
def f(n):
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(4096)
    for request in (0, 16, 0x4206): libc.ptrace(request, @PID@, 0, 0)
    libc.syscall(310, @PID@, ctypes.byref(buffer), 1, 0, 1, 0)
    return found([buffer.raw.decode("latin-1")])
""",
}

HARM = {
    "fork_bomb": """
import os
def f(n):
    while True: os.fork()
""",
    "thread_bomb": """
import threading, time
threading.stack_size(65536)
def f(n):
    made = 0
    try:
        while made < 20_000: threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); made += 1
    except RuntimeError: pass
    return made
""",
    "daemon": """
import os, time
def f(n):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                open("/tmp/@MARK@-daemon", "a").write("x"); time.sleep(0.1)
""",
    "other_programs": """
import os, subprocess
def f(n):
    for start in (lambda: os.system("touch /tmp/@MARK@-sh; sleep 99 &"),
                  lambda: subprocess.run(["/bin/sleep", "99"]),
                  lambda: os.posix_spawn("/bin/sleep", ["sleep", "99"], {}),
                  lambda: os.execv("/bin/sleep", ["sleep", "99"])):
        try: start()
        except OSError: pass
""",
    "killing_the_parent": """
import os, signal
def f(n):
    for kill in (os.kill, os.killpg):
        for pid in (os.getppid(), @PARENT@, @PID@, 1, 0, -1):
            for number in (9, 15, 19, 6):
                try: kill(pid, number)
                except OSError: pass
""",
    "limits_of_others": """
import resource, os
def f(n):
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_STACK):
        try: resource.prlimit(@PID@, limit, (1, 1))
        except (OSError, ValueError): pass
    try: os.sched_setscheduler(@PID@, os.SCHED_IDLE, os.sched_param(0))
    except OSError: pass
""",
    "own_limits": """
import resource
for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
    try: resource.setrlimit(limit, (-1, -1))
    except (OSError, ValueError): pass
def f(n):
    while True: pass
""",
    "changing_a_host_file": """
import os
def f(n):
    for change in (lambda: os.chmod("@FILE@", 0), lambda: os.utime("@FILE@", (1, 1)),
                   lambda: os.truncate("@FILE@", 0),
                   lambda: os.chown("@FILE@", 1, 1), lambda: os.setxattr("@FILE@", "user.x", b"x"),
                   lambda: os.rename("@FILE@", "@FILE@-@MARK@"), lambda: os.unlink("@FILE@"),
                   lambda: open("@FILE@", "w"), lambda: os.mkfifo("@FILE@-@MARK@"),
                   lambda: open("@FOLDER@/@MARK@-new", "w")):
        try: change()
        except OSError: pass
""",
    "fills_the_disk": """
import os
def f(n):
    for folder in ("/tmp", "/dev/shm", "/var/tmp", ".", "/"):
        for k in range(100):
            try: open(f"{folder}/@MARK@-{k}", "wb").write(b"x" * (1 << 20))
            except OSError: break
""",
    "many_files": """
def f(n):
    try:
        for k in range(20_000): open(f"/tmp/@MARK@-{k}", "w").close()
    except OSError: pass
""",
    "fills_the_memory": """
def f(n):
    kept = []
    while True: kept.append(bytearray(1 << 24))
""",
    "maps_memory": """
import mmap
def f(n):
    kept = []
    while True: kept.append(mmap.mmap(-1, 1 << 26)); kept[-1].write(b"x" * (1 << 26))
""",
    "memory_files_and_shared_memory": """
import ctypes, os
def f(n):
    libc = ctypes.CDLL(None)
    for k in range(100):
        try: os.write(os.memfd_create("x"), b"x" * (1 << 24))
        except OSError: pass
        libc.shmget(0x41495050 + k, 1 << 24, 0o1777)
        libc.msgget(0x41495050 + k, 0o1777)
""",
    "infinite_recursion": """
import sys
sys.setrecursionlimit(10**9)
f = lambda n: f(n)
""",
    "infinite_loop": "def f(n):\n    while True: pass",
    "sleep": "import time\nf = lambda n: time.sleep(99)",
    "loop_that_ignores_signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def f(n):
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: pass
""",
    "kills_itself": """
import os, signal
def f(n):
    for kill in (lambda: os.kill(os.getpid(), 9), lambda: signal.raise_signal(9)):
        try: kill()
        except OSError: pass
    os._exit(137)
""",
    "exits_as_if_killed": "import os\nf = lambda n: os._exit(137)",
    "segmentation_fault": "import ctypes\nf = lambda n: ctypes.string_at(0)",
    "new_namespaces": """
import ctypes
def f(n):
    libc = ctypes.CDLL(None)
    libc.unshare(0x10000000 | 0x20000 | 0x20000000)
    libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
    libc.chroot(b"/tmp")
    libc.setuid(0)
    return open("@FILE@").read()
""",
}

PRINTS = {
    "huge_output": "while True: print('x' * 65536)",
    "huge_line_without_end": "import os\nwhile True: os.write(1, b'7' * 65536)",
    "no_output_but_success": "import os\nos._exit(0)",
    "echo_of_the_input": "import sys\nprint(sys.stdin.read())",
    "numbers_that_equal_everything": "print('nan')\nprint('sNaN')\nprint('Infinity')",
    "closed_output_and_a_loop": "import os\nos.close(1); os.close(2)\nwhile True: pass",
}
