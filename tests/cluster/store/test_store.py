"""The store: a private server that nobody else can use or outlive, calls that outlive an outage, locks that hold."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import redis
from pydantic import SecretStr

from rollcall.cluster.books.ledger import Ledger
from rollcall.cluster.errors import BadInput, RunAlive, StoreUnavailable
from rollcall.cluster.store import redis_server
from rollcall.cluster.store.redis_address import may_pass, outage
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.redis_server import PrivateRedis, redis_client
from rollcall.cluster.store.run_lock import driver_alive
from rollcall.cluster.store.store import Store, inspect_store, open_store
from tests.waiting import eventually

QUICK = RedisConfig(start_timeout_s=5, operation_timeout_s=1, reconnect_timeout_s=5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(QUICK, tmp_path) as store:
        yield store


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A Redis that stands for one of the user's own."""
    folder = tmp_path_factory.mktemp("own")
    server = PrivateRedis(folder / "data", folder / "log", start_timeout_s=5)
    server.start()
    yield server
    server.stop()


def at(server: PrivateRedis, **changes: float) -> RedisConfig:
    url = SecretStr(server.url)
    return QUICK.model_copy(update={"url": url, **changes})


def put(store: Store, value: str) -> None:
    store.call(lambda client: client.set(store.key("value"), value))


def get(store: Store) -> str | None:
    return store.call(lambda client: client.get(store.key("value")))  # type: ignore[return-value]


def runs(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(pid: int | None) -> bool:
    return pid is not None and not runs(pid)


def test_keys_carry_the_run_id_as_a_cluster_hash_tag(store: Store) -> None:
    assert store.key("ledger", "head") == f"rollcall:{{{store.run_id}}}:ledger:head"


def test_a_private_server_keeps_its_data_and_the_run_id_between_two_openings(tmp_path: Path) -> None:
    with open_store(QUICK, tmp_path) as store:
        assert store.private
        put(store, "kept")
        run_id, pid = store.run_id, store.server_pid
    assert not runs(pid)
    with open_store(QUICK, tmp_path) as store:
        assert get(store) == "kept"
        assert store.run_id == run_id


def test_the_password_is_wanted_and_is_seen_nowhere(store: Store, tmp_path: Path) -> None:
    server = store._server
    assert server is not None
    with redis_client(unix_socket_path=str(server.socket_path)) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    seen_by_others = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (server.pid, os.getpid())]
    seen_by_others += [Path(f"/proc/{server.pid}/environ").read_bytes()]
    for path in tmp_path.rglob("*"):
        if path.is_file() and (path.stat().st_mode & 0o077 or path.suffix == ".log"):
            seen_by_others.append(path.read_bytes())
    assert len(seen_by_others) > 5
    assert not any(server.password.encode() in text for text in seen_by_others)
    assert psutil.Process(server.pid).net_connections("tcp") == [], "no port, a socket alone"
    assert server.socket_path.stat().st_mode & 0o777 == 0o700
    assert server.socket_path.parent.stat().st_mode & 0o777 == 0o700


def test_a_run_directory_with_blanks_and_quotes_in_its_name_works(tmp_path: Path) -> None:
    directory = tmp_path / 'a "quoted" run\\'
    with open_store(QUICK, directory) as store:
        put(store, "x")
        assert any(path.stat().st_size > 0 for path in (directory / "redis").rglob("*.aof"))


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").write_bytes(b"*1\r\n$7\r\nnonsense\r\n*9\r\n")
    with pytest.raises(
        StoreUnavailable,
        match=r"does not start; the last line of .*redis\.log is: .* reading the append only file.*; if",
    ):
        open_store(QUICK, tmp_path)
    assert not driver_alive(tmp_path)


def test_a_private_server_that_was_killed_is_started_again_on_its_data(store: Store) -> None:
    put(store, "before")
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        pid = store.server_pid
        os.kill(pid, signal_number)
        assert eventually(partial(ended, pid))
        assert get(store) == "before"
        assert store.server_pid != pid


def test_a_private_server_does_not_end_with_the_thread_that_opened_it(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG fires at the end of the forking thread, not of the process."""
    opened: list[Store] = []
    thread = threading.Thread(target=lambda: opened.append(open_store(QUICK, tmp_path)))
    thread.start()
    thread.join()
    with opened[0] as store:
        time.sleep(0.2)
        assert runs(store.server_pid)


def test_a_ctrl_c_for_the_driver_does_not_reach_its_server(store: Store) -> None:
    assert os.getpgid(store.server_pid) != os.getpgid(0)


OWNER = """
import sys, time
from pathlib import Path
from rollcall.cluster.store.redis_address import RedisConfig, may_pass, outage
from rollcall.cluster.store.store import open_store
store = open_store(RedisConfig(), Path(sys.argv[1]))
store.acquire_lock()
store.call(lambda client: client.set("owner", "was here"))
print(store.server_pid, flush=True)
time.sleep(60)
"""


def test_after_kill_9_of_its_owner_no_server_is_left_and_the_run_can_be_opened(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        server_pid = int(owner.stdout.readline())
        assert runs(server_pid)
        assert driver_alive(tmp_path)
        with pytest.raises(RunAlive, match=rf"in use by another driver \(pid {owner.pid} on "):
            open_store(QUICK, tmp_path)
        owner.kill()
    assert eventually(lambda: not runs(server_pid))
    assert not driver_alive(tmp_path)
    with open_store(QUICK, tmp_path) as store:
        start = time.monotonic()
        store.acquire_lock()  # the dead owner's lock is in the data still
        assert time.monotonic() - start < 1
        assert store.call(lambda client: client.get("owner")) == "was here"


def test_a_server_whose_owner_died_before_it_was_bound_does_not_start(tmp_path: Path) -> None:
    """Between fork and prctl: the parent is another process by then."""
    wrapper = [sys.executable, "-I", "-S", "-c", redis_server._BOUND_EXEC]
    done = subprocess.run([*wrapper, str(os.getppid()), str(tmp_path / "lock"), "1", "/bin/echo", "ran"], timeout=10)
    assert done.returncode == redis_server._EXIT_ORPHAN


def test_two_servers_never_share_their_data(tmp_path: Path) -> None:
    with open_store(QUICK, tmp_path):
        second = PrivateRedis(tmp_path / "redis", tmp_path / "log", start_timeout_s=0.5)
        with pytest.raises(RunAlive, match="another redis-server still keeps"):
            second.start()
        second.stop()


def test_a_redis_of_the_users_own_is_used_and_left_running(server: PrivateRedis, tmp_path: Path) -> None:
    with open_store(at(server), tmp_path) as store:
        assert not store.private
        put(store, "x")
    assert server.alive()
    assert server.password not in (tmp_path / "redis" / "url").read_text()


def test_the_url_may_come_from_the_environment(
    server: PrivateRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLCALL_REDIS_URL", f"{server.url}?db=1")
    with open_store(QUICK, tmp_path) as store:
        assert not store.private


def test_bad_redis_urls_are_bad_input_in_one_line_without_the_password(server: PrivateRedis, tmp_path: Path) -> None:
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        urls = {
            f"unix://:hunter2@{server.socket_path}": "refuses us",
            f"unix://me:hunter2@{server.socket_path}": "refuses us",
            "redis://:hunter2@127.0.0.1:1": r"does not answer within 0\.3 s",
            f"redis://:hunter2@127.0.0.1:{silent.getsockname()[1]}": r"does not answer within 0\.3 s",
            "http://:hunter2@127.0.0.1": "not a Redis url",
        }
        for url, what in urls.items():
            config = RedisConfig(url=SecretStr(url), start_timeout_s=0.3, operation_timeout_s=0.2)
            with pytest.raises(BadInput, match=what) as error:
                open_store(config, tmp_path)
            assert "hunter2" not in str(error.value)
            assert "\n" not in str(error.value)
            assert "redis.url" in str(error.value)
            assert not driver_alive(tmp_path)


def test_an_outage_is_waited_out(server: PrivateRedis, tmp_path: Path) -> None:
    with open_store(at(server), tmp_path) as store:
        put(store, "before")
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: not server.alive())
        back = threading.Timer(0.5, server.start)
        back.start()
        assert get(store) == "before"
        back.join()


def test_an_outage_that_lasts_too_long_stops_the_run_and_is_not_waited_for_twice(
    server: PrivateRedis, tmp_path: Path
) -> None:
    with open_store(at(server, reconnect_timeout_s=0.5), tmp_path) as store:
        server.stop()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"waited for 0\.5 s \(redis\.reconnect_timeout_s\)"):
            get(store)
        assert 0.4 < time.monotonic() - start < 3
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            get(store)
        assert time.monotonic() - start < 0.3


def test_a_full_redis_is_waited_out_until_there_is_room(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    books = Ledger(store, tickets_per_step=1)
    books.open_epoch()
    store.client.config_set("maxmemory", "100kb")
    more = threading.Timer(0.5, lambda: store.client.config_set("maxmemory", "0"))
    more.start()
    start = time.monotonic()
    books.issue([(0, 1)])  # through the ledger's script, whose errors look otherwise
    assert time.monotonic() - start > 0.3
    more.join()
    assert books.counts().issued == 1
    (line,) = {record.getMessage() for record in caplog.records if "full" in record.getMessage()}
    assert "raise maxmemory" in line and "redis.reconnect_timeout_s" in line and "script" not in line


def test_a_redis_that_stays_full_ends_the_run_in_a_line_that_says_what_to_do(
    server: PrivateRedis, tmp_path: Path
) -> None:
    with open_store(at(server, reconnect_timeout_s=0.3), tmp_path) as store:
        books = Ledger(store, tickets_per_step=1)
        books.open_epoch()
        store.client.config_set("maxmemory", "100kb")
        for write in (lambda: books.issue([(0, 1)]), lambda: put(store, "value")):
            with pytest.raises(StoreUnavailable) as error:
                write()
            assert str(error.value).startswith("Redis is full (its maxmemory is used up): raise maxmemory")
        store.client.config_set("maxmemory", "0")
        books.issue([(0, 1)])
        assert books.counts().issued == 1


@pytest.mark.parametrize(
    "text",
    [
        "MISCONF Errors writing to the AOF file: No space left on device",
        "Error running script (call to f_1): @user_script:1: @user_script: 1: -MISCONF Errors writing to the AOF file: "
        "No space left on device",
        "MISCONF Errors writing to the AOF file: No space left on device script: f_1, on @user_script:1.",
    ],
)
def test_a_full_disk_below_redis_is_waited_out_too(text: str) -> None:
    assert may_pass(redis.ResponseError(text))
    assert outage(redis.ResponseError(text)).startswith("Redis cannot write to its disk: make room there (MISCONF Err")


def test_an_error_of_the_callers_own_is_raised_at_once(store: Store) -> None:
    put(store, "text")
    start = time.monotonic()
    with pytest.raises(redis.ResponseError):
        store.call(lambda client: client.incr(store.key("value")))
    assert time.monotonic() - start < 0.5


def test_a_child_forked_by_a_driver_does_not_hold_its_directory(tmp_path: Path) -> None:
    release = multiprocessing.get_context("fork").Event()
    with open_store(QUICK, tmp_path):
        child = multiprocessing.get_context("fork").Process(target=release.wait, args=(30,))
        child.start()
    try:
        with open_store(QUICK, tmp_path):
            pass
    finally:
        release.set()
        child.join()


def second_store(first: Store, config: RedisConfig, directory: Path) -> Store:
    """Another driver's store of the same run, from another machine: the directory lock does not see it."""
    other = open_store(config, directory)
    other.run_id = first.run_id
    return other


def test_a_lock_that_is_refreshed_keeps_a_second_driver_out(server: PrivateRedis, tmp_path: Path) -> None:
    with open_store(at(server), tmp_path / "a") as first:
        token = first.acquire_lock(ttl_s=0.3).token
        refused = pytest.raises(RunAlive, match=f"pid {os.getpid()} on .*, fencing token {token}")
        with second_store(first, at(server), tmp_path / "b") as second, refused:
            second.acquire_lock(ttl_s=0.3)


def test_the_lock_of_a_dead_driver_runs_out_and_the_next_token_is_higher(server: PrivateRedis, tmp_path: Path) -> None:
    with open_store(at(server), tmp_path / "a") as first, second_store(first, at(server), tmp_path / "b") as second:
        dead = first.acquire_lock(ttl_s=0.5)
        dead._released.set()  # its thread ends as with its process
        assert second.acquire_lock(ttl_s=0.5).token > dead.token


def test_a_driver_that_lost_its_lock_writes_nothing_more(server: PrivateRedis, tmp_path: Path) -> None:
    with open_store(at(server), tmp_path) as store:
        store.acquire_lock(ttl_s=0.15)
        put(store, "mine")
        store.client.set(store.key("lock"), "99:elsewhere:7")
        assert eventually(lambda: store._run_lock is not None and store._run_lock._lost_to is not None)
        with pytest.raises(RunAlive, match="pid 7 on elsewhere, fencing token 99"):
            put(store, "not mine")
        assert store.client.get(store.key("value")) == "mine"


def test_a_lock_that_redis_forgot_in_an_outage_is_taken_again(server: PrivateRedis, tmp_path: Path) -> None:
    with open_store(at(server), tmp_path) as store:
        store.acquire_lock(ttl_s=0.15)
        store.client.delete(store.key("lock"))
        assert eventually(lambda: bool(store.client.get(store.key("lock"))), 2)
        put(store, "still mine")


def tree(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_looking_at_a_run_at_rest_changes_nothing_in_it(tmp_path: Path) -> None:
    with open_store(QUICK, tmp_path) as store:
        put(store, "x")
    before = tree(tmp_path)
    with inspect_store(QUICK, tmp_path) as copy:
        assert get(copy) == "x"
        put(copy, "changed in the copy")
        pid = copy.server_pid
    assert tree(tmp_path) == before
    assert not runs(pid)


def test_looking_at_a_run_that_is_alive_sees_what_it_sees(store: Store, tmp_path: Path) -> None:
    put(store, "now")
    with inspect_store(QUICK, tmp_path) as live:
        assert get(live) == "now"
        assert not live.private
    assert get(store) == "now"


def test_looking_at_a_run_with_a_redis_of_its_own_wants_its_url(server: PrivateRedis, tmp_path: Path) -> None:
    with open_store(at(server), tmp_path) as store:
        put(store, "x")
    with (
        pytest.raises(BadInput, match=r"wants a password: give it in \$ROLLCALL_REDIS_URL"),
        inspect_store(QUICK, tmp_path),
    ):
        pass
    with inspect_store(at(server), tmp_path) as found:
        assert get(found) == "x"


def test_looking_at_a_directory_without_books_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no books"), inspect_store(QUICK, tmp_path):
        pass
