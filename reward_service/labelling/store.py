"""The queue of comparisons and the book of labels: who is asked what, under a lease, and what was said; in Redis and on
the disk."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import redis
from redis.commands.core import Script

from rollcall.cluster.errors import LeaseLost, StoreUnavailable
from rollcall.cluster.store.redis_config import RedisConfig
from rollcall.cluster.store.store import open_store
from rollcall.reward_service.labelling.leases import Lease
from rollcall.reward_service.labelling.protocol import Progress
from rollcall.reward_service.labelling.redis_queue import LabellingConfig, QueueKeys, RedisCaller, rebuild_queue
from rollcall.reward_service.preferences.log import Books, Entry, PreferenceLog
from rollcall.reward_service.preferences.records import Answer, Choice, Comparison, Label

_T = TypeVar("_T")
_AT_ONCE = 200  # comparisons of one call, so that none takes long

_log = logging.getLogger(__name__)


class PreferenceStore:
    """The preferences of one directory and one namespace of Redis. Thread-safe; every method is atomic.

    All methods raise StoreUnavailable while Redis is away.
    """

    def __init__(
        self, caller: RedisCaller, *, namespace: str, directory: Path, config: LabellingConfig | None = None
    ) -> None:
        self.config = config or LabellingConfig()
        self.directory = directory
        self._caller = caller
        self._keys = QueueKeys.of(namespace)
        self._lua = files(__package__).joinpath("preference_queue.lua").read_text()
        self._script: Script | None = None
        self._files = PreferenceLog(directory)
        self._writing = threading.RLock()
        self._seq = 0
        self._filed: set[str | tuple[str, str]] = set()  # ids of comparisons and names of entries on the disk
        self._files.open()
        self.reconcile()

    # Asking.

    def add(self, comparisons: Iterable[Comparison]) -> int:
        """Queues what was never queued before. Returns how many that were."""
        new = 0
        for batch in _batched(comparisons, _AT_ONCE):
            first: dict[str, Comparison] = {}
            for comparison in batch:
                first.setdefault(comparison.id, comparison)
            lines = {id_: self._files.pack(comparison) for id_, comparison in first.items()}
            sizes = {id_: len(comparison.candidates) for id_, comparison in first.items()}
            with self._writing:
                new += len(self._run("add", *(x for id_, line in lines.items() for x in (id_, line, sizes[id_]))))
                self._file_comparisons(lines)
        return new

    def lease(self, rater: str, *, session: str = "", held: Sequence[str] = ()) -> Lease | None:
        """What the rater is asked next; None where nothing waits for him. A session that already has a lease, and does
        not say that it holds it, gets that one again: a page that was loaded anew goes on where it was."""
        reply = self._run("lease", rater, session, self._ttl_ms, _nonce(), self.config.labels_per_comparison, *held)
        return self._lease_of(reply)

    def leased(self, token: str) -> Lease:
        """What was leased under the token.

        Raises:
          LeaseLost: it has expired, or was used.
        """
        found = self._caller.call(lambda client: client.hget(self._keys.leases, token))
        if found is None:
            raise LeaseLost("this comparison's lease has expired, or it was labelled already")
        id_, _, order, _ = str(found).split("|", 3)
        return self._lease(token, id_, order)

    def label(
        self,
        *,
        token: str,
        rater: str,
        duration_s: float,
        choice: Choice | None = None,
        ranks: Sequence[int] | None = None,
        probability: float | None = None,
    ) -> Label:
        """Takes a label, given in the order of the screen. The same one said again is taken once.

        Raises:
          LeaseLost: the lease has expired, is another rater's, or was used for another label.
          ValueError: this cannot be said of that comparison.
        """
        with self._writing:
            places = None if ranks is None else tuple(ranks)
            answer = Answer(choice=choice, ranks=places, probability=probability)
            given = self._caller.call(lambda client: client.hget(self._keys.labels, token))
            if given not in (None, "withdrawn"):
                return self._repeated(Label.model_validate_json(str(given)), rater, answer)
            label = self.leased(token).label(answer, rater=rater, duration_s=duration_s)
            entry = Entry(label=label)
            status, said = self._settle("label", [token, rater], label, entry)
            if status == "repeat":
                return self._repeated(Label.model_validate_json(said), rater, answer)
            if status == "foreign":
                raise LeaseLost("this comparison was leased to somebody else")
            if status == "expired":
                raise LeaseLost("this comparison's lease has expired: it goes to somebody else")
            self._file([entry])
            return label

    def withdraw(self, *, token: str, rater: str, session: str = "") -> Lease | None:
        """Takes the rater's own label back, and leases him that comparison again.

        Raises:
          LeaseLost: there is no such label of his.
        """
        with self._writing:
            given = self._caller.call(lambda client: client.hget(self._keys.labels, token))
            if given is None:
                raise LeaseLost("there is no such label")
            if given == "withdrawn":  # said again: the answer was lost on its way
                return self.lease(rater, session=session)
            label = Label.model_validate_json(str(given))
            if label.rater != rater:
                raise LeaseLost("this label is somebody else's")
            entry = Entry(withdrawn=token)
            what, again = (label.comparison_id, _kind(label)), (self._ttl_ms, _nonce())
            reply = self._run("withdraw", token, rater, session, *what, *again, entry.line())
            self._file([entry])
            return self._lease_of(reply)

    def put(self, given: Iterable[tuple[Comparison, Label]]) -> int:
        """Labels from elsewhere, without a lease. Returns how many are new: a rater says one thing of a comparison."""
        new = 0
        for batch in _batched(given, _AT_ONCE):
            self.add(comparison for comparison, _ in batch)
            with self._writing:
                taken: list[Entry] = []
                for comparison, label in batch:
                    entry = Entry(label=label)
                    _, said = self._settle("import", [comparison.id, label.rater, label.token], label, entry)
                    taken += [entry] if said == "new" else []
                self._file(taken)
            new += len(taken)
        return new

    # Reading.

    def comparison(self, id_: str) -> Comparison:
        line = self._caller.call(lambda client: client.hget(self._keys.comparisons, id_))
        if line is None:
            raise LeaseLost(f"there is no comparison {id_}")
        return self._files.unpack(str(line))

    def progress(self, rater: str, *, since: datetime) -> Progress:
        counts = self._run("progress", rater, round(since.timestamp() * 1000))
        return Progress(**dict(zip(("comparisons", "labels", "waiting", "today"), map(int, counts), strict=True)))

    def labelled(self, after: int = 0, *, limit: int = 1000) -> tuple[list[tuple[Comparison, Label]], int]:
        """Labels that came after a position of the log and still stand, and the position to ask from next time."""
        lines = self._caller.call(lambda client: client.lrange(self._keys.log, after, after + limit - 1))
        entries = [Entry.model_validate_json(str(line)) for line in cast(list[str], lines)]
        labels = [entry.label for entry in entries if entry.label is not None]
        if not labels:
            return [], after + len(entries)
        states = self._caller.call(lambda client: client.hmget(self._keys.labels, [label.token for label in labels]))
        pairs = zip(labels, cast(list[str | None], states), strict=True)
        standing = [label for label, value in pairs if value not in (None, "withdrawn")]
        return [(self.comparison(label.comparison_id), label) for label in standing], after + len(entries)

    def books(self) -> Books:
        return self._files.read()

    def standing(self) -> Iterator[tuple[Comparison, Label]]:
        """Every label that stands, with what it is of."""
        return self._files.standing()

    # How.

    def reconcile(self) -> None:
        """Brings the disk and Redis to the same state, the union of both: either may have lost what the other has.
        Leases that are alive stay."""
        with self._writing:
            books = self._files.read()
            self._filed = {*books.comparisons, *(entry.name for entry in books.entries)}

            def rebuild(pipeline: Any) -> None:
                queued, lines = pipeline.hgetall(self._keys.comparisons), pipeline.lrange(self._keys.log, 0, -1)
                seq, leases = int(pipeline.hget(self._keys.head, "seq") or 0), pipeline.hgetall(self._keys.leases)
                for id_, line in queued.items():
                    books.comparisons.setdefault(id_, line)
                names = {entry.name for entry in books.entries}
                said = [Entry.model_validate_json(line) for line in lines]
                books.entries.extend(entry for entry in said if entry.name not in names)
                self._seq = max(self._seq, seq) + 1
                pipeline.multi()
                rebuild_queue(pipeline, self._keys, books, leases, self._seq, self.config)

            self._caller.call(
                lambda client: client.transaction(rebuild, self._keys.head, self._keys.leases, self._keys.log)
            )
            self._file_comparisons(books.comparisons)
            self._file([entry for entry in books.entries if entry.name not in self._filed])

    @property
    def _ttl_ms(self) -> int:
        return round(self.config.lease_ttl_s * 1000)

    def _file_comparisons(self, lines: Mapping[str, str]) -> None:
        unfiled = [id_ for id_ in lines if id_ not in self._filed]
        self._files.append_comparisons([lines[id_] for id_ in unfiled])
        self._filed.update(unfiled)

    def _file(self, entries: Sequence[Entry]) -> None:
        self._files.append_entries(entries)
        self._filed.update(entry.name for entry in entries)

    def _repeated(self, label: Label, rater: str, answer: Answer) -> Label:
        said = answer.reordered(label.shown)
        if label.rater != rater or (label.choice, label.ranks) != (said.choice, said.ranks):
            raise LeaseLost("this comparison was labelled already")
        if ("label", label.token) not in self._filed:  # it was acknowledged by Redis, and the disk failed
            self._file([Entry(label=label)])
        return label

    def _settle(self, operation: str, first: list[str], label: Label, entry: Entry) -> tuple[str, str]:
        at_ms = round(label.created_at.timestamp() * 1000)
        limits = [self.config.labels_per_comparison, self.config.max_skips, at_ms]
        status, *reply = self._reply(
            operation, *first, label.model_dump_json(exclude_none=True), _kind(label), *limits, entry.line()
        )
        if status == "ok":
            self._seq, reply = max(self._seq, int(reply[0])), reply[1:]
        return status, reply[0] if reply else ""

    def _lease_of(self, reply: Sequence[str]) -> Lease | None:
        return self._lease(*reply) if reply else None

    def _lease(self, token: str, id_: str, order: str) -> Lease:
        return Lease(token, self.comparison(id_), tuple(map(int, order.split(","))), self.config.lease_ttl_s)

    def _run(self, operation: str, *arguments: str | int) -> list[str]:
        status, *reply = self._reply(operation, *arguments)
        if status != "ok":
            raise LeaseLost(f"{operation}: {status}")
        self._seq = max(self._seq, int(reply[0]))
        return reply[1:]

    def _reply(self, operation: str, *arguments: str | int) -> list[str]:
        for _ in range(3):
            call = [self._seq, operation, *arguments]
            reply = self._caller.call(partial(self._call, call))
            if reply[0] != "behind":
                return reply
            _log.warning("Redis has lost comparisons or labels; writing them again from %s", self.directory)
            self.reconcile()
        raise StoreUnavailable("Redis keeps losing what was written to it")

    def _call(self, call: Sequence[str | int], client: redis.Redis) -> list[str]:
        if self._script is None:
            self._script = client.register_script(self._lua)
        return [str(value) for value in cast(list[Any], self._script(keys=self._keys, args=call, client=client))]


@contextmanager
def open_labelling(directory: Path, config: LabellingConfig | None = None) -> Iterator[PreferenceStore]:
    """The preferences of a directory, with a Redis of their own unless redis.url is set; nobody else has it meanwhile.

    Raises:
      RunAlive: the directory is being served.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # A page waits for an outage by itself: a request must not hang for it.
    with open_store(RedisConfig(reconnect_timeout_s=5.0), directory) as store:
        namespace = store.key("labelling")
        yield PreferenceStore(store, namespace=namespace, directory=directory / "preferences", config=config)


def _kind(label: Label) -> str:
    return "label" if label.places is not None else "skip"


def _nonce() -> str:
    return secrets.token_hex(8)


def _batched(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    left = iter(values)
    while batch := list(islice(left, size)):
        yield batch
