"""Runs inside the sandbox, beside the program: evaluates calls and prints what they gave as typed JSON.

The program shares this process and may change, stop or imitate all of it. Whoever forges these lines has to
know the answers, which are not in this process.

This file is never imported by the grader: `code_check` sends its text, with `serve(...)` appended. A line is
{"v": value} or {"e": "name of the error"}. Values are of exact builtin types; other types are errors, so that
an object that equals everything cannot come out. Its `except BaseException` is the boundary to the program.
"""

import json
import os
import signal
import sys

_DEPTH = 60
_dumps, _loads, _write, _leave, _timer, _alarm = (
    json.dumps,
    json.loads,
    os.write,
    os._exit,
    signal.setitimer,
    signal.signal,
)
_KEYS = type({0: 0}.keys())


def _encode(value, depth=_DEPTH):  # type: ignore[no-untyped-def]
    """Return the value as JSON; exact builtin types only. Mirrored by `code_values.decode`."""
    kind = type(value)
    if kind in (str, bool, type(None)):
        return value
    if kind is int:
        return value if -(1 << 53) < value < 1 << 53 else {"i": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"f": repr(value)}
    if kind is complex:
        return {"c": [repr(value.real), repr(value.imag)]}
    if kind in (bytes, bytearray):
        return {"b": value.hex()}
    if not depth:
        raise TypeError("nested too deeply")
    if kind is list:
        return [_encode(item, depth - 1) for item in value]
    if kind is tuple or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return {"t": [_encode(item, depth - 1) for item in value]}
    if kind in (set, _KEYS):
        return {"s": [_encode(item, depth - 1) for item in value]}
    if kind is frozenset:
        return {"z": [_encode(item, depth - 1) for item in value]}
    if kind is dict or (isinstance(value, dict) and kind.__module__ == "collections"):
        return {"d": [[_encode(key, depth - 1), _encode(item, depth - 1)] for key, item in dict.items(value)]}
    raise TypeError(f"returned {kind.__name__}, which is no builtin value")


def _call(namespace, call, solutions):  # type: ignore[no-untyped-def]
    """Evaluate a call; as in LiveCodeBench's runner, all calls share one `Solution`."""
    if not call["arguments"]:
        return eval(call["expression"], namespace)
    function = call["expression"]
    if isinstance(namespace.get("Solution"), type) and hasattr(namespace["Solution"], function):
        if not solutions:
            solutions.append(namespace["Solution"]())
        return getattr(solutions[0], function)(*_loads(call["arguments"]))
    return namespace[function](*_loads(call["arguments"]))


def _answer(namespace, call, cpu_s, solutions):  # type: ignore[no-untyped-def]
    """Return one line. A call that takes too long ends this process, by a signal whose default is to do
    that."""
    _alarm(signal.SIGPROF, signal.SIG_DFL)
    _timer(signal.ITIMER_PROF, cpu_s)
    try:
        value = _call(namespace, call, solutions)
        return _dumps({"v": _encode(bool(value) if call["truth"] else value)})
    except BaseException as error:
        return _dumps({"e": type(error).__name__[:40]})
    finally:
        _timer(signal.ITIMER_PROF, 0)


def serve(text):  # type: ignore[no-untyped-def]
    """Execute prelude and program, evaluate the calls, print a line for each, and leave."""
    job = _loads(text)
    channel = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    module = type(sys)("program")
    sys.modules["program"] = module
    namespace = module.__dict__
    cpu_s = job["cpu_s"]
    lines = []
    solutions = []  # type: ignore[var-annotated]
    sys.set_int_max_str_digits(50_000)
    try:
        exec(compile(job["prelude"], "prelude.py", "exec"), namespace)
        _timer(signal.ITIMER_PROF, cpu_s)
        exec(compile(job["program"], "program.py", "exec"), namespace)
    except BaseException as error:
        lines = [_dumps({"e": type(error).__name__[:40]})]
    else:
        for call in job["calls"]:
            lines.append(_answer(namespace, call, cpu_s, solutions))
            if lines[-1].startswith('{"e"'):
                break
    data = ("\n".join(lines) + "\n").encode()
    while data:
        data = data[_write(channel, data) :]
    _leave(0)
