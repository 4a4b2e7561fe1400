"""What another user of the machine can do to a run, tried: a process of that user at its folders, sockets and ports."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from tests.needs import SYSTEM_PYTHON

NOBODY = 65534
PAGES = ("/", "/metrics", "/healthz", "/api/healthz", "/v1/models", "/docs")

# It prints whatever it was able to do.
STRANGER = """
import json, os, socket, sys
did = []
paths, ports, pages = map(json.loads, sys.argv[1:])
for path in paths:
    for what, attempt in (
        ("listed", lambda: os.listdir(path)),
        ("read", lambda: open(path, "rb").close()),
        ("wrote", lambda: open(path, "r+b").close()),
        ("moved", lambda: os.rename(path, path + ".gone")),
        ("connected", lambda: socket.socket(socket.AF_UNIX).connect(path)),
        ("made", lambda: os.mkdir(os.path.join(path, "mine"))),
    ):
        try:
            attempt()
            did.append([what, path])
        except OSError:
            pass
for port in ports:
    for page in pages:
        try:  # who is asked may hang up
            with socket.create_connection(("127.0.0.1", port), 5) as line:
                line.settimeout(0.3)
                line.sendall(f"GET {page} HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n".encode())
                said = line.recv(4096)
        except OSError:
            said = b""
        if b" 200 " in said[:20]:
            did.append(["heard", f"{port}{page}"])
        if not said.startswith(b"HTTP/1"):
            break
print(json.dumps(did))
"""


def processes_of(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def listens(pid: int) -> dict[int, str]:
    """Port -> address, of what a process and its children listen on."""
    found: dict[int, str] = {}
    for process in processes_of(pid):
        with suppress(psutil.NoSuchProcess):
            for line in process.net_connections("inet"):
                if line.status == psutil.CONN_LISTEN or (not line.raddr and line.type == socket.SOCK_DGRAM):
                    found[line.laddr.port] = line.laddr.ip.removeprefix("::ffff:")
    return found


def sockets(pid: int) -> set[str]:
    """Paths of their sockets; one without a path, which has no owner either, begins with @."""
    found: set[str] = set()
    for process in processes_of(pid):
        with suppress(psutil.NoSuchProcess):
            found |= {str(line.laddr).replace("\0", "@") for line in process.net_connections("unix") if line.laddr}
    return found


def scratch(pid: int) -> set[str]:
    """Files that they have open where every user may write: temporary ones, and memory that they share."""
    found: set[str] = set()
    for process in processes_of(pid):
        with suppress(psutil.Error):
            found |= {file.path for file in process.open_files()}
    return {path for path in found if path.startswith((tempfile.gettempdir() + "/", "/dev/shm/"))}


def what_a_stranger_can_do(pid: int, *folders: Path) -> list[str]:
    """To a process and its children. `folders`: theirs, with all that lies in them."""
    paths = {str(path) for folder in folders for path in (folder, *folder.rglob("*"))} | sockets(pid) | scratch(pid)
    tcp = [port for port, _ in listens(pid).items()]
    done = subprocess.run(
        [SYSTEM_PYTHON, "-I", "-c", STRANGER, *map(json.dumps, (sorted(paths), tcp, PAGES))],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [" ".join(what) for what in json.loads(done.stdout)]
