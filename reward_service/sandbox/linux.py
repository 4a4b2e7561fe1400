"""What the sandbox asks of Linux beyond `os`: namespaces, mounts, Landlock, capabilities, limits. Runs inside the
sandbox's helper, from the standard library alone."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable, Mapping

NEW_MOUNTS, NEW_IPC, NEW_UTS, NEW_USER = 0x00020000, 0x08000000, 0x04000000, 0x10000000
NEW_PIDS, NEW_NETWORK = 0x20000000, 0x40000000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SUBREAPER, _PR_NO_NEW_PRIVS = 1, 4, 24, 36, 38
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MS_KEPT = 1 | 2 | 4 | 8 | 1024 | 2048  # read-only, no setuid, no devices, ...: what a user namespace may not take away
_MNT_DETACH = 2
_CAPABILITIES_VERSION = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # on every machine

# Landlock's rights on files, by bit: all of ABI 1 (0-12), REFER (2), TRUNCATE (3), IOCTL_DEV (5).
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_READ = _READ_FILE | _READ_DIR
_CHANGE = _WRITE_FILE | _TRUNCATE | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8) | (1 << 10) | (1 << 12) | (1 << 13)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: int | bytes | None) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *converted), what)


def prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(option, *padded), f"prctl({option})")


def no_new_privileges() -> None:
    prctl(_PR_NO_NEW_PRIVS, 1)


def die_with_parent(signal_number: signal.Signals) -> None:
    """The signal comes when the thread that started this process ends. Ask afterwards who the parent is: it may have
    gone before."""
    prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process."""
    prctl(_PR_SET_SUBREAPER, 1)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def map_own_user() -> None:
    """In a new user namespace: this user under its own number, and nobody else."""
    uid, gid = os.geteuid(), os.getegid()
    for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def enter_root(
    scratch: str, *, readable: Iterable[str], links: Mapping[str, str], owner: int, disk_bytes: int, max_files: int
) -> None:
    """Makes a new file system the root of this mount namespace: the `readable` directories and devices at their own
    places, read-only; the links; an empty /tmp of limited size; nothing else, /proc neither. Ends in /tmp.

    Args:
      scratch: an empty directory to mount it on.
      links: name in the root -> where it points.
      owner: of /tmp.
    """
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", scratch, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    for path in readable:
        target = scratch + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        device = 0 if path.startswith("/dev/") else _MS_NODEV | _MS_RDONLY
        _mount(path, target, None, _MS_BIND)
        kept = os.statvfs(path).f_flag & _MS_KEPT
        _mount(None, target, None, _MS_BIND | _MS_REMOUNT | _MS_NOSUID | device | kept)
    for name, target in links.items():
        if not os.path.lexists(scratch + name):
            os.symlink(target, scratch + name)
    os.mkdir(f"{scratch}/tmp")
    room = f"size={disk_bytes},nr_inodes={max_files},mode=700"
    _mount("tmpfs", f"{scratch}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, room)
    os.chown(f"{scratch}/tmp", owner, -1)
    os.chdir(scratch)
    _syscall("pivot_root", _PIVOT_ROOT[os.uname().machine], b".", b".")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")
    _mount(None, "/", None, _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    os.chdir("/tmp")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _checked(_libc.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]), f"mount of {source or target}")


def landlock_version() -> int:
    """Of the interface; 0 where there is none."""
    try:
        return _syscall("landlock", _LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def restrict_files(*, readable: Iterable[str], writable: Iterable[str]) -> None:
    """Landlock: files are read below `readable` and changed below `writable` alone, no program is executed; no TCP
    (ABI 4), and no abstract socket or signal outwards (ABI 6). For good, for this process and all that come of it."""
    version = landlock_version()
    handled = (1 << 13) - 1
    for since, right in ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15)):
        if version >= since:
            handled |= right
    attributes = struct.pack("<Q", handled)
    if version >= 4:
        attributes += struct.pack("<Q", 3)
    if version >= 6:
        attributes += struct.pack("<Q", 3)
    rules = _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, attributes, len(attributes), 0)
    for paths, rights in ((readable, _READ), (writable, _READ | _CHANGE)):
        for path in paths:
            granted = rights & handled
            if not os.path.isdir(path):
                granted &= _READ_FILE | _WRITE_FILE | _TRUNCATE
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _syscall("landlock_add_rule", _LANDLOCK_ADD, rules, 1, struct.pack("<Qi", granted, place), 0)
            os.close(place)
    no_new_privileges()
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def unlikely_user(serial: int) -> int:
    """A user that owns nothing and runs nothing else, so that its processes can be counted; nobody, where such numbers
    are not mapped here."""
    uid = 0x70000000 + serial
    with open("/proc/self/uid_map") as ranges:
        for line in ranges:
            start, _, count = map(int, line.split())
            if start <= uid < start + count:
                return uid
    return 65534


def drop_user(uid: int) -> None:
    """From root to an ordinary user, for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def drop_capabilities() -> None:
    """Those of a new user namespace, which the user keeps on entering it; and nothing of this process can be traced."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    header = struct.pack("<Ii", _CAPABILITIES_VERSION, 0)
    _syscall("capset", _CAPSET[os.uname().machine], header, bytes(24))
    no_new_privileges()
    prctl(_PR_SET_DUMPABLE, 0)


def limit(*, cpu_s: int, **limits: int) -> None:
    """`limit(cpu_s=5, AS=2**29)`: for good, once the user is not root. SIGXCPU comes after cpu_s, SIGKILL a second
    later."""
    for name, value in (limits | {"CPU": cpu_s + 1}).items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (min(value, cpu_s) if name == "CPU" else value, value))


def children() -> list[int]:
    """Of this process, by pid."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
            if parent == os.getpid():
                found.append(int(entry))
    return found
