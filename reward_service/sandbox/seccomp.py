"""A seccomp filter for code that nobody trusts: an allow-list of system calls as a BPF program, written out by hand.
Runs inside the sandbox's helper, from the standard library alone."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from rollcall.reward_service.sandbox.linux import no_new_privileges, prctl

# Each call with its number on x86-64 and on AArch64 (- where it is not there).
_ALWAYS = """
read 0 63; readv 19 65; pread64 17 67; preadv 295 69; write 1 64; writev 20 66; pwrite64 18 68; pwritev 296 70;
open 2 -; openat 257 56; close 3 57; close_range 436 436; stat 4 -; fstat 5 80; lstat 6 -; newfstatat 262 79;
statx 332 291; lseek 8 62; access 21 -; faccessat 269 48; faccessat2 439 439; readlink 89 -; readlinkat 267 78;
getcwd 79 17; chdir 80 49; fchdir 81 50; getdents64 217 61; getdents 78 -; statfs 137 43; fstatfs 138 44; dup 32 23;
dup2 33 -; dup3 292 24; pipe 22 -; pipe2 293 59; select 23 -; pselect6 270 72; poll 7 -; ppoll 271 73;
epoll_create 213 -; epoll_create1 291 20; epoll_ctl 233 21; epoll_wait 232 -; epoll_pwait 281 22; eventfd2 290 19;
flock 73 32; fsync 74 82; fdatasync 75 83; umask 95 166; sendfile 40 71; copy_file_range 326 285; splice 275 76;
tee 276 77; getxattr 191 8; lgetxattr 192 9; fgetxattr 193 10; listxattr 194 11; llistxattr 195 12;
flistxattr 196 13; mmap 9 222; mprotect 10 226; munmap 11 215; mremap 25 216; madvise 28 233; brk 12 214;
mincore 27 232; msync 26 227; membarrier 324 283; rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139;
rt_sigtimedwait 128 137; rt_sigpending 127 136; rt_sigsuspend 130 133; sigaltstack 131 132; pause 34 -; alarm 37 -;
getitimer 36 102; setitimer 38 103; restart_syscall 219 128; nanosleep 35 101; clock_nanosleep 230 115;
clock_gettime 228 113; clock_getres 229 114; gettimeofday 96 169; time 201 -; times 100 153; timerfd_create 283 85;
timerfd_settime 286 86; timerfd_gettime 287 87; getpid 39 172; getppid 110 173; gettid 186 178; getuid 102 174;
geteuid 107 175; getgid 104 176; getegid 108 177; getresuid 118 148; getresgid 120 150; getgroups 115 158;
getpgrp 111 -; getpgid 121 155; getsid 124 156; getpriority 140 141; capget 125 90; getrlimit 97 163;
setrlimit 160 164; getrusage 98 165; uname 63 160; sysinfo 99 179; getcpu 309 168; getrandom 318 278;
sched_yield 24 124; sched_getaffinity 204 123; sched_getparam 143 121; sched_getscheduler 145 120;
sched_get_priority_max 146 125; sched_get_priority_min 147 126; futex 202 98; set_robust_list 273 99;
get_robust_list 274 100; set_tid_address 218 96; arch_prctl 158 -; rseq 334 293; exit 60 93; exit_group 231 94;
wait4 61 260; waitid 247 95; recvfrom 45 207; recvmsg 47 212; shutdown 48 210; getsockopt 55 209; setsockopt 54 208;
getsockname 51 204; getpeername 52 205
"""
_CHANGE_FILES = """
creat 85 -; rename 82 -; renameat 264 38; renameat2 316 276; mkdir 83 -; mkdirat 258 34; rmdir 84 -; unlink 87 -;
unlinkat 263 35; link 86 -; linkat 265 37; symlink 88 -; symlinkat 266 36; chmod 90 -; fchmod 91 52;
fchmodat 268 53; truncate 76 45; ftruncate 77 46; fallocate 285 47; utime 132 -; utimes 235 -; utimensat 280 88;
futimesat 261 -; mknod 133 -; mknodat 259 33
"""
_MANY_PROCESSES = """
fork 57 -; vfork 58 -; kill 62 129; tkill 200 130; tgkill 234 131; setsid 112 157; setpgid 109 154
"""
_CHECKED = """
clone 56 220; prlimit64 302 261; fcntl 72 25; ioctl 16 29; prctl 157 167; socketpair 53 199; sendto 44 206
"""

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_CLONE3, _OPENAT2, _NEWEST = 435, 437, 450  # on both; glibc does without all that it is told does not exist
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2

_NEW_NAMESPACES = 0x7E020000
_CLONE_THREAD = 0x00010000
_FCNTL_SIGNALS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: a way to signal other processes
_IOCTL_HARMLESS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX
_PRCTL_HARMLESS = (15, 16)  # the thread's name
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def supported() -> bool:
    """Whether this machine's calls are known here."""
    return os.uname().machine in _ARCHITECTURES and struct.calcsize("P") == 8


def program(*, own_processes: bool, own_files: bool) -> bytes:
    """The filter. Without a PID namespace of its own (`own_processes`) the code may start threads but no processes and
    signal nobody; without a mount namespace (`own_files`) it may open nothing for writing and change no file."""
    architecture, column = _ARCHITECTURES[os.uname().machine]

    def numbers(table: str) -> dict[str, int]:
        rows = [row.split() for row in table.split(";")]
        return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}

    allowed = numbers(_ALWAYS)
    checked = numbers(_CHECKED)
    if own_processes:
        allowed |= numbers(_MANY_PROCESSES)
    opening: dict[str, int] = {}
    if own_files:
        allowed |= numbers(_CHANGE_FILES)
    else:
        opening = {name: allowed.pop(name) for name in ("open", "openat") if name in allowed}
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if column == 0:
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for number in allowed.values():
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code += _when(checked["clone"], _clone(own_processes))
    code += _when(checked["prlimit64"], _only(0, (0,)))
    code += _when(checked["fcntl"], _none_of(1, _FCNTL_SIGNALS))
    code += _when(checked["ioctl"], _only(1, _IOCTL_HARMLESS))
    code += _when(checked["prctl"], _only(0, _PRCTL_HARMLESS))
    code += _when(checked["socketpair"], _only(0, (1,)))  # AF_UNIX: asyncio's own alarm bell
    code += _when(checked["sendto"], _no_address())
    for name, number in opening.items():
        code += _when(number, _no_bits(1 if name == "open" else 2, _WRITING))
    for number in (_CLONE3, _OPENAT2):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    code += [(_AT_LEAST, 0, 1, _NEWEST), (_RETURN, 0, 0, _ERROR | errno.ENOSYS), _refusal()]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def install(filter_program: bytes) -> None:
    """Binds this process and all that come of it, for good."""
    no_new_privileges()
    buffer = ctypes.create_string_buffer(filter_program, len(filter_program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(filter_program) // 8, ctypes.addressof(buffer)))
    prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(header))


def _refusal() -> _Instruction:
    return (_RETURN, 0, 0, _ERROR | errno.EPERM)


def _low_half(argument: int) -> _Instruction:
    """Loads what Linux reads of an argument that is an int (both machines are little-endian)."""
    return (_LOAD, 0, 0, 16 + 8 * argument)


def _when(number: int, judge: list[_Instruction]) -> list[_Instruction]:
    """`judge`, which ends in a return on every way, for one call."""
    return [(_EQUAL, 0, len(judge), number), *judge]


def _only(argument: int, values: tuple[int, ...]) -> list[_Instruction]:
    code = [_low_half(argument)]
    for value in values:
        code += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*code, _refusal()]


def _none_of(argument: int, values: tuple[int, ...]) -> list[_Instruction]:
    code = [_low_half(argument)]
    for value in values:
        code += [(_EQUAL, 0, 1, value), _refusal()]
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _no_bits(argument: int, bits: int) -> list[_Instruction]:
    return [_low_half(argument), (_ANY_BIT, 0, 1, bits), _refusal(), (_RETURN, 0, 0, _ALLOW)]


def _clone(own_processes: bool) -> list[_Instruction]:
    code = [_low_half(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _refusal()]
    if not own_processes:
        code += [(_ANY_BIT, 1, 0, _CLONE_THREAD), _refusal()]
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _no_address() -> list[_Instruction]:
    """send() and not sendto(): a datagram socket would reach any other by its name."""
    low = _low_half(4)
    high = (low[0], 0, 0, low[3] + 4)
    return [low, (_EQUAL, 1, 0, 0), _refusal(), high, (_EQUAL, 1, 0, 0), _refusal(), (_RETURN, 0, 0, _ALLOW)]
