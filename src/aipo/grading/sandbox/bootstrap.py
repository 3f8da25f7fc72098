"""Runs inside the sandbox, before the program: gives up every right, says that it is ready, executes the
program.

`ready` is written only after every limit of the payload is in force; without it nothing was executed. Nothing
of ours is imported: this text is passed to `python -c`.

The payload comes as a file descriptor (marshal: its reader needs no imports), so that no file has to be made.
"""

import ctypes
import marshal
import os
import resource
import sys

_NO_NEW_PRIVS, _SET_PDEATHSIG, _SET_SECCOMP = 38, 1, 22
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


class _Code(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _check(result, what):  # type: ignore[no-untyped-def]
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _limit(limits):  # type: ignore[no-untyped-def]
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        if name == "RLIMIT_STACK":  # raised, and the program may raise it further
            resource.setrlimit(number, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
            continue
        most = hard if hard != resource.RLIM_INFINITY else value + 1
        # A second between SIGXCPU, which can be told from other ends, and SIGKILL, which cannot be ignored.
        resource.setrlimit(number, (min(value, most), min(value + (name == "RLIMIT_CPU"), most)))


def _landlock(libc, readable):  # type: ignore[no-untyped-def]
    """Allow reading below `readable`, and writing /dev/null and what is below the folder that this process
    stands in; nothing else of the file system, no links and no devices, no TCP, no signals."""
    abi = _check(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1), "landlock")
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    words = [every, *([3] if abi >= 4 else []), *([3] if abi >= 6 else [])]
    attributes = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
    rules = _check(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock")
    own = (
        2 | 4 | 8 | 16 | 32 | 128 | 256 | (every & 1 << 14)
    )  # to make, write, cut and remove files and folders
    for path in (".", *readable):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = own if path == "." else 4 | 8 if os.path.isdir(path) else 6 if path == os.devnull else 4
        rule = rights.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
        _check(libc.syscall(_ADD_RULE, rules, 1, rule, 0), f"landlock rule for {path}")
        os.close(opened)
    _check(libc.syscall(_RESTRICT_SELF, rules, 0), "landlock")
    os.close(rules)


def _give_up(box):  # type: ignore[no-untyped-def]
    libc = ctypes.CDLL(None, use_errno=True)
    if box["uid"]:
        os.setgroups([])
        os.setresgid(box["uid"], box["uid"], box["uid"])
        os.setresuid(box["uid"], box["uid"], box["uid"])
    if box["parent"]:  # after the change of uid, which clears it
        _check(libc.prctl(_SET_PDEATHSIG, 9, 0, 0, 0), "PDEATHSIG")
        if os.getppid() != box["parent"]:
            raise OSError("the parent is gone")
    os.umask(0o077)
    _check(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "NO_NEW_PRIVS")
    if box["readable"]:
        _landlock(libc, box["readable"])
    _limit(box["limits"])
    own, unknown = (number.to_bytes(4, sys.byteorder) for number in (os.getpid(), box["own_pid"]))
    code = _Code(len(box["filter"]) // 8, box["filter"].replace(unknown, own))
    _check(libc.prctl(_SET_SECCOMP, 2, ctypes.byref(code), 0, 0), "seccomp")


def main():  # type: ignore[no-untyped-def]
    """Give up every right, then become the program."""
    payload, status = int(sys.argv[1]), int(sys.argv[2])
    with open(payload, "rb") as file:
        box = marshal.loads(file.read())
    nothing = os.open(os.devnull, os.O_WRONLY)
    import _sitebuiltins  # without site there is no exit(), on which many programs rely
    import builtins

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    _give_up(box)
    sys.argv[:] = ["program.py"]
    sys.path.extend(box["library_paths"])
    os.write(status, b"ready")
    os.dup2(nothing, 2)
    os.closerange(3, max(64, status + 1, nothing + 1, payload + 1))
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    exec(compile(box["source"], "program.py", "exec", dont_inherit=True), module.__dict__)


if __name__ == "__main__":
    main()
