"""Which system calls a program may make: an allow-list as a BPF program, packed with the standard library.

x86-64 only; elsewhere `build` refuses. What is not listed fails with ENOSYS: fork, exec, sockets, ptrace,
mounts, namespaces, io_uring, keys, memfd, kill, chmod, and every call that a later kernel adds.

ENOSYS and not EPERM: the C library then falls back (clone3 to clone, faccessat2 to access). A list of what is
allowed and not of what is denied: nobody has to know the next dangerous call. Calls with arguments that
matter have rules of their own below (`_RULES`).
"""

import platform
import struct

_AUDIT_X86_64 = 0xC000003E
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_ENOSYS, _EPERM = 38, 1
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x3FFFFFFF

# Calls and their numbers in the x86-64 table, by what they are for.
_TABLE = """
# files and pipes; which files is the matter of namespaces, Landlock and permissions
read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 pread64 17 pwrite64 18 readv 19
writev 20 access 21 pipe 22 select 23 dup 32 dup2 33 sendfile 40 flock 73 fsync 74 fdatasync 75
ftruncate 77 getdents 78 getcwd 79 chdir 80 fchdir 81 rename 82 mkdir 83 rmdir 84 creat 85 link 86
unlink 87 symlink 88 readlink 89 umask 95 statfs 137 fstatfs 138 getdents64 217 fadvise64 221 openat 257
mkdirat 258 newfstatat 262 unlinkat 263 renameat 264 linkat 265 symlinkat 266 readlinkat 267
faccessat 269 pselect6 270 ppoll 271 fallocate 285 dup3 292 pipe2 293 preadv 295 pwritev 296
renameat2 316 copy_file_range 326 preadv2 327 pwritev2 328 statx 332 close_range 436 faccessat2 439
# memory; how much is the matter of RLIMIT_AS
mmap 9 mprotect 10 munmap 11 brk 12 mremap 25 msync 26 mincore 27 madvise 28
# to handle, mask and wait for signals; timers for oneself
rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 pause 34 getitimer 36 alarm 37 setitimer 38
rt_sigpending 127 rt_sigtimedwait 128 rt_sigsuspend 130 sigaltstack 131
# time
nanosleep 35 gettimeofday 96 getrusage 98 times 100 time 201 clock_gettime 228 clock_getres 229
clock_nanosleep 230
# threads
sched_yield 24 exit 60 gettid 186 futex 202 set_tid_address 218 restart_syscall 219 exit_group 231
set_robust_list 273 getcpu 309 membarrier 324 rseq 334
# about oneself
getpid 39 wait4 61 uname 63 getrlimit 97 sysinfo 99 getuid 102 getgid 104 geteuid 107 getegid 108
getppid 110 getpgrp 111 getgroups 115 getresuid 118 getresgid 120 getpgid 121 getsid 124
sched_getparam 143 sched_getscheduler 145 sched_get_priority_max 146 sched_get_priority_min 147
arch_prctl 158 sched_getaffinity 204 getrandom 318
# waiting for descriptors
epoll_create 213 epoll_wait 232 epoll_ctl 233 epoll_pwait 281 eventfd 284 eventfd2 290 epoll_create1 291
"""
_PAIRS = [line.split() for line in _TABLE.splitlines() if not line.startswith("#")]
ALLOWED = {name: int(number) for line in _PAIRS for name, number in zip(line[::2], line[1::2], strict=True)}

_IOCTL, _CLONE, _FCNTL, _TGKILL, _PRLIMIT = 16, 56, 72, 234, 302
_CLONE_THREAD = 0x10000
_SIGABRT, _RLIMIT_STACK = 6, 3
OWN_PID = 0x7A69F1D5
"""Stands in the filter for the number of the process itself, which only that process knows: it puts it in."""

# call: (argument, values it may have). F_SETSIG, F_SETOWN and O_ASYNC could send any signal; TIOCSTI types
# into a terminal.
_RULES = {
    _IOCTL: (1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    _FCNTL: (1, (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)),
}
# For event loops, which wake themselves through a pair of connected sockets: local streams only, without
# messages out of band and without any address, so that nothing outside can be named.
_SOCKETPAIR, _SENDTO, _RECVFROM = 53, 44, 45
_STREAMS = tuple(1 | kept | free for kept in (0, 0x80000) for free in (0, 0x800))
_TOGETHER = {
    _SOCKETPAIR: ((0, (1,)), (1, _STREAMS)),
    _SENDTO: ((3, (0, 0x4000)), (4, (0,))),
    _RECVFROM: ((3, (0,)),),
}


def build() -> bytes:
    """Return the filter as instructions of the classic BPF.

    Raises:
        NotImplementedError: this machine is not x86-64.
    """
    if platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        raise NotImplementedError(
            f"machine = {platform.machine()!r}: the seccomp list is for x86-64 only; use sandboxfusion"
        )
    code = [_ins(_LOAD, _ARCHITECTURE), _ins(_JUMP_EQUAL, _AUDIT_X86_64, 1, 0), _ins(_RETURN, _KILL)]
    # The x32 table has the same calls under other numbers.
    code += [_ins(_LOAD, _NUMBER), _ins(_JUMP_ABOVE, _X32, 0, 1), _ins(_RETURN, _KILL)]
    for number in ALLOWED.values():
        code += [_ins(_JUMP_EQUAL, number, 0, 1), _ins(_RETURN, _ALLOW)]
    for number, (argument, values) in _RULES.items():
        code += _only(number, _values(argument, values))
    for number, rules in _TOGETHER.items():
        code += _only(number, _all_of(rules))
    code += _only(_CLONE, [_argument(0), _ins(_JUMP_SET, _CLONE_THREAD, 0, 1), _ins(_RETURN, _ALLOW)])
    code += _only(_TGKILL, _abort())
    code += _only(_PRLIMIT, _prlimit())
    code.append(_ins(_RETURN, _ERRNO | _ENOSYS))
    return b"".join(code)


def _ins(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _argument(index: int, high: bool = False) -> bytes:
    return _ins(_LOAD, _ARGUMENTS + 8 * index + 4 * high)


def _only(number: int, block: list[bytes]) -> list[bytes]:
    """Return the block for one call; a call that no instruction of it allows fails with EPERM."""
    return [_ins(_JUMP_EQUAL, number, 0, len(block) + 1), *block, _ins(_RETURN, _ERRNO | _EPERM)]


def _values(argument: int, values: tuple[int, ...]) -> list[bytes]:
    code = [_argument(argument)]
    for value in values:
        code += [_ins(_JUMP_EQUAL, value, 0, 1), _ins(_RETURN, _ALLOW)]
    return code


def _all_of(rules: tuple[tuple[int, tuple[int, ...]], ...]) -> list[bytes]:
    """Allow a call each of whose arguments, all 64 bits of it, is one of those listed for it."""
    deny = _ins(_RETURN, _ERRNO | _EPERM)
    code = []
    for argument, values in rules:
        code += [_argument(argument, high=True), _ins(_JUMP_EQUAL, 0, 1, 0), deny, _argument(argument)]
        code += [_ins(_JUMP_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
        code.append(deny)
    return [*code, _ins(_RETURN, _ALLOW)]


def _abort() -> list[bytes]:
    """Allow abort(): SIGABRT to the process itself."""
    return [
        _argument(0),
        _ins(_JUMP_EQUAL, OWN_PID, 0, 3),
        _argument(2),
        _ins(_JUMP_EQUAL, _SIGABRT, 0, 1),
        _ins(_RETURN, _ALLOW),
    ]


def _prlimit() -> list[bytes]:
    """Allow reading limits, and setting one's own stack; a lower limit on CPU would end in a SIGKILL like any
    other's.

    Whose limits are read does not matter: they are no secret.
    """
    return [
        _argument(2, high=True),
        _ins(_JUMP_EQUAL, 0, 0, 3),
        _argument(2),
        _ins(_JUMP_EQUAL, 0, 0, 1),
        _ins(_RETURN, _ALLOW),
        _argument(0),
        _ins(_JUMP_EQUAL, 0, 0, 3),
        _argument(1),
        _ins(_JUMP_EQUAL, _RLIMIT_STACK, 0, 1),
        _ins(_RETURN, _ALLOW),
    ]
