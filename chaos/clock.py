#!/usr/bin/env python3
"""Lets one process, and nobody else, believe in another wall clock, which can be set while it runs. Linux on x86_64.

clock.py run SECONDS COMMAND…   runs the command with its wall clock that far from the true one
clock.py set PID SECONDS        sets the clock of a process that was started so

A static binary asks the vDSO, a piece of code that the kernel maps into each process. At the command's exec its
clock_gettime is replaced by one that asks the kernel and, for CLOCK_REALTIME, adds a number that lies behind the code. Its
children get a vDSO of their own when they exec, and with it the true time; CLOCK_MONOTONIC and the times of files stay true."""
import ctypes
import os
import signal
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_CONT, PTRACE_DETACH, PTRACE_SEIZE = 7, 17, 0x4206
PTRACE_O_TRACEEXEC, PTRACE_EVENT_EXEC = 0x10, 4
WALL = 0x40000000
# mov eax, SYS_clock_gettime; syscall; test edi, edi; jne end; mov rcx, [rip + 6]; add [rsi], rcx; end: ret; two bytes of room
CODE = bytes.fromhex("b8e4000000 0f05 85ff 750a 488b0d06000000 48010e c3 9090".replace(" ", ""))
SLOT = len(CODE)


def place_of_clock(pid):
    """Address of the vDSO's clock_gettime in that process."""
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps:
        line = next(line for line in maps if line.rstrip().endswith("[vdso]"))
    first, last = (int(number, 16) for number in line.split()[0].split("-"))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(first)
        image = memory.read(last - first)
    program_headers, = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    tables = {}
    for index in range(count):
        kind, _, offset = struct.unpack_from("<IIQ", image, program_headers + index * size)
        if kind == 2:
            while True:
                tag, value = struct.unpack_from("<QQ", image, offset)
                if tag == 0:
                    break
                tables[tag] = value
                offset += 16
    # DT_STRTAB, DT_SYMTAB; the strings lie behind the symbols.
    strings, symbols = tables[5], tables[6]
    for at in range(symbols, strings, 24):
        name, _, _, _, value, length = struct.unpack_from("<IBBHQQ", image, at)
        if image[strings + name:image.index(0, strings + name)] == b"__vdso_clock_gettime":
            if length < SLOT + 8:
                sys.exit(f"the vDSO's clock_gettime has {length} bytes, too few")
            return first + value
    sys.exit("the vDSO has no clock_gettime")


def write(pid, address, data):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(data)


def ptrace(request, pid, data=0):
    if LIBC.ptrace(request, pid, None, ctypes.c_void_p(data)) != 0:
        sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")


def patch_at_exec(pid, seconds, ready):
    ptrace(PTRACE_SEIZE, pid, PTRACE_O_TRACEEXEC)
    os.close(ready)
    while True:
        _, status = os.waitpid(pid, WALL)
        if not os.WIFSTOPPED(status):
            return
        if status >> 8 == signal.SIGTRAP | PTRACE_EVENT_EXEC << 8:
            break
        # A signal on its way to it, such as that of its child's end.
        ptrace(PTRACE_CONT, pid, os.WSTOPSIG(status))
    write(pid, place_of_clock(pid), CODE + struct.pack("<q", seconds))
    ptrace(PTRACE_DETACH, pid)


def run(seconds, *command):
    listening, ready = os.pipe()
    agent = os.getpid()
    if os.fork() == 0:
        # A grandchild: the command must not have a child that it does not know.
        os.close(listening)
        if os.fork() == 0:
            try:
                patch_at_exec(agent, seconds, ready)
            except BaseException as error:
                print(f"clock.py: {error}", file=sys.stderr)
                os.kill(agent, signal.SIGKILL)
        os._exit(0)
    os.close(ready)
    os.wait()
    os.read(listening, 1)
    os.close(listening)
    os.execvp(command[0], command)


def main(deed, *arguments):
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        sys.exit("clock.py: for Linux on x86_64 only")
    if deed == "run":
        run(int(arguments[0]), *arguments[1:])
    pid = int(arguments[0])
    place = place_of_clock(pid)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(place)
        if memory.read(SLOT) != CODE:
            sys.exit(f"{pid} was not started by this program")
    write(pid, place + SLOT, struct.pack("<q", int(arguments[1])))


if __name__ == "__main__":
    main(*sys.argv[1:])
