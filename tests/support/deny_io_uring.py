#!/usr/bin/env python3
"""Runs a command under a seccomp filter that answers every io_uring system call with EPERM.

    deny_io_uring.py COMMAND [ARGUMENT...]

This is what container runtimes do whose default profile leaves io_uring out, so a program that runs
under it shows what it does there. Needs Linux and Python 3 with ctypes, no privileges: the filter
is installed with `no_new_privs`. The command replaces this process, so its pid, its signals and its
exit status are the command's own.
"""

import ctypes
import errno
import os
import sys

# io_uring came after system call numbers were unified: these hold on every architecture.
IO_URING_CALLS = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427}
# x86_64 offers a second entrance to the same calls, marked by this bit.
X32_SYSCALL_BIT = 0x4000_0000

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF_0000
SECCOMP_RET_ERRNO = 0x0005_0000

# Classic BPF: load a word of `struct seccomp_data`, jump if equal, return.
BPF_LD_W_ABS = 0x20
BPF_ALU_AND_K = 0x54
BPF_JMP_JEQ_K = 0x15
BPF_RET_K = 0x06
OFFSET_OF_NUMBER = 0


class Instruction(ctypes.Structure):
    """`struct sock_filter`"""

    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jump_if_true", ctypes.c_uint8),
        ("jump_if_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class Program(ctypes.Structure):
    """`struct sock_fprog`"""

    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction))]


def denying(numbers):
    """The filter as instructions: EPERM for `numbers`, everything else allowed."""
    numbers = sorted(numbers)
    code = [
        Instruction(BPF_LD_W_ABS, 0, 0, OFFSET_OF_NUMBER),
        Instruction(BPF_ALU_AND_K, 0, 0, 0xFFFF_FFFF & ~X32_SYSCALL_BIT),
    ]
    for index, number in enumerate(numbers):
        # Distance from the next instruction to the last one, over the other tests and the ALLOW.
        code.append(Instruction(BPF_JMP_JEQ_K, len(numbers) - index, 0, number))
    code.append(Instruction(BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW))
    code.append(Instruction(BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | errno.EPERM))
    return code


def install(code):
    """Puts this process, and what it executes, under the filter."""
    libc = ctypes.CDLL(None, use_errno=True)
    array = (Instruction * len(code))(*code)
    program = Program(len(code), array)

    def prctl(option, *arguments):
        padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
        padded += [ctypes.c_ulong(0)] * (4 - len(padded))
        if libc.prctl(ctypes.c_int(option), *padded) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl({option}): {os.strerror(number)}")

    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))


def io_uring_errno():
    """What `io_uring_setup` says in this process: 0 when a ring was made (and closed again)."""
    libc = ctypes.CDLL(None, use_errno=True)
    # `struct io_uring_params` is 120 octets, all zero for a plain ring.
    parameters = ctypes.create_string_buffer(120)
    number = ctypes.c_long(IO_URING_CALLS["io_uring_setup"])
    fd = libc.syscall(number, ctypes.c_uint(1), parameters)
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0


def main(arguments):
    if not arguments:
        sys.exit(f"usage: {sys.argv[0]} COMMAND [ARGUMENT...]")
    install(denying(IO_URING_CALLS.values()))
    answer = io_uring_errno()
    if answer != errno.EPERM:
        # A filter that does not filter would let every test under it pass for the wrong reason.
        sys.exit(f"io_uring_setup answered {errno.errorcode.get(answer, answer)}, not EPERM")
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        sys.exit(f"{arguments[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
