"""Sandboxes: an untrusted Python program in, what it printed and how it ended out.

Read `base` (the words), `process` (one supervised run), `bootstrap` (what runs inside before the program),
`seccomp`, then the back ends `bubblewrap`, `landlock` and `fusion`, and `detect` (which of them this machine
has).
"""
