"""The routes of labelling: the page, and what it and other raters ask and say. To be mounted in the service's app,
which checks tokens and sizes."""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, ParamSpec, TypeVar

from fastapi import APIRouter, Path, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from rollcall.cluster.errors import BadInput, LeaseLost, StoreUnavailable
from rollcall.reward_service.labelling.leases import Lease
from rollcall.reward_service.labelling.protocol import (
    AddRequest,
    AddResponse,
    AgreementBody,
    ClipResponse,
    LabelledResponse,
    LabelRequest,
    LabelResponse,
    LeaseBody,
    LeasedSegment,
    LeaseRequest,
    LeaseResponse,
    Progress,
    WithdrawRequest,
)
from rollcall.reward_service.labelling.store import PreferenceStore
from rollcall.reward_service.preferences.agreement import agreement
from rollcall.reward_service.preferences.clip_store import ClipStore
from rollcall.reward_service.preferences.clips import Clip, RecordedFrames
from rollcall.reward_service.preferences.files import preference_line, preference_values
from rollcall.reward_service.preferences.records import RaterName, SegmentCandidate, TextCandidate, preference_of
from rollcall.reward_service.protocol import ErrorBody

PAGE_PATH = "/label"
OPEN_PATHS = (PAGE_PATH,)  # the page itself says nothing; what it asks for needs the token
_TOKEN = r"^[0-9]{1,18}-[0-9a-f]{16}$"

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def router(store: PreferenceStore) -> APIRouter:
    """The routes over one store."""
    routes = _Routes(store)
    found = APIRouter()
    found.get(PAGE_PATH, response_class=HTMLResponse)(routes.page)
    preferences = APIRouter(prefix="/v1/preferences", responses=_documented(401, 409, 422, 503))
    preferences.post("/comparisons")(_answered(routes.add))
    preferences.post("/frames")(_answered(routes.frames))
    preferences.post("/lease")(_answered(routes.lease))
    preferences.post("/labels")(_answered(routes.label))
    preferences.post("/withdraw")(_answered(routes.withdraw))
    preferences.get("/clips/{token}/{place}")(_answered(routes.clip))
    preferences.get("/progress")(_answered(routes.progress))
    preferences.get("/labelled")(_answered(routes.labelled))
    preferences.get("/export", response_class=StreamingResponse)(_answered(routes.export))
    preferences.get("/agreement")(_answered(routes.agreement))
    found.include_router(preferences)
    return found


class _Routes:
    """Plain functions: FastAPI runs them on threads, since Redis and the disk make them wait."""

    def __init__(self, store: PreferenceStore) -> None:
        self._store = store
        self._clips = ClipStore(store.directory)
        self._page, self._policy = _page()

    def page(self) -> Response:
        """The labelling page: one file that asks nothing of any other host."""
        headers = {
            "content-security-policy": self._policy,
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        return HTMLResponse(self._page, headers=headers)

    def add(self, asked: AddRequest) -> AddResponse:
        """Queues comparisons. One that was queued before stays as it is."""
        comparisons = [new.comparison() for new in asked.comparisons]
        for comparison in comparisons:
            self._clips.check(comparison)
        return AddResponse(ids=tuple(c.id for c in comparisons), new=self._store.add(comparisons))

    def frames(self, asked: RecordedFrames) -> ClipResponse:
        """Keeps frames that were captured with a segment; its candidate then names them as its `clip`."""
        return ClipResponse(clip=self._clips.keep(asked))

    def lease(self, asked: LeaseRequest) -> LeaseResponse:
        """What this rater is asked next, for a while."""
        lease = self._store.lease(asked.rater, session=asked.session, held=asked.held)
        body = None if lease is None else _body(lease, arrays=asked.segments)
        return LeaseResponse(lease=body, progress=self._progress(asked.rater, asked.since))

    def label(self, asked: LabelRequest) -> LabelResponse:
        """Takes a label: once, and only while its lease is alive (else 409)."""
        self._store.label(**asked.model_dump(exclude={"since"}))
        return LabelResponse(progress=self._progress(asked.rater, asked.since))

    def withdraw(self, asked: WithdrawRequest) -> LeaseResponse:
        """Takes the rater's own label back, and leases its comparison to him again."""
        lease = self._store.withdraw(token=asked.token, rater=asked.rater, session=asked.session)
        body = None if lease is None else _body(lease, arrays=False)
        return LeaseResponse(lease=body, progress=self._progress(asked.rater, asked.since))

    def clip(self, token: str = Path(pattern=_TOKEN), place: int = Path(ge=0, lt=9)) -> Clip:
        """The moving picture of what is leased under the token, in one place of the screen."""
        lease = self._store.leased(token)
        if place >= len(lease.order) or lease.comparison.kind != "segment":
            raise ValueError(f"place {place} of this comparison has no clip")
        return self._clips.clip(lease.comparison, lease.order[place])

    def progress(self, rater: RaterName) -> Progress:
        """How much is labelled, and how much waits for this rater."""
        return self._progress(rater, None)

    def labelled(self, after: int = Query(0, ge=0), limit: int = Query(200, ge=1, le=1000)) -> LabelledResponse:
        """Labels that came after a place in the log, as lines of a preference file; skips are left out."""
        pairs, next_ = self._store.labelled(after, limit=limit)
        found = [preference_of(comparison, label) for comparison, label in pairs]
        values = tuple(preference_values(preference) for preference in found if preference is not None)
        return LabelledResponse(preferences=values, next=next_)

    def export(self) -> Response:
        """Everything that stands, as a preference file."""

        def lines() -> Iterator[str]:
            for comparison, label in self._store.standing():
                preference = preference_of(comparison, label)
                if preference is not None:
                    yield preference_line(preference)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    def agreement(self) -> AgreementBody:
        """How far raters agree. Which raters do is for the command line: names are not given away here."""
        found = agreement(self._store.books().standing())
        return AgreementBody.model_validate({name: getattr(found, name) for name in AgreementBody.model_fields})

    def _progress(self, rater: str, since: datetime | None) -> Progress:
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return self._store.progress(rater, since=since or midnight)


def _body(lease: Lease, *, arrays: bool) -> LeaseBody:
    texts = tuple(c for c in lease.candidates if isinstance(c, TextCandidate))
    segments = tuple(
        LeasedSegment(env_id=c.env_id, num_steps=c.segment.num_steps, candidate=c if arrays else None)
        for c in lease.candidates
        if isinstance(c, SegmentCandidate)
    )
    question = lease.comparison.metadata.get("question")
    return LeaseBody(
        token=lease.token,
        comparison_id=lease.comparison.id,
        kind=lease.comparison.kind,
        question=question if isinstance(question, str) else None,
        candidates=texts or segments,
        ttl_s=lease.ttl_s,
    )


def _answered(route: Callable[_P, _R]) -> Callable[_P, _R | Response]:
    """Our errors as answers with an ErrorBody."""

    @functools.wraps(route)
    def answer(*args: _P.args, **kwargs: _P.kwargs) -> _R | Response:
        try:
            return route(*args, **kwargs)
        except LeaseLost as error:
            return _refusal(409, "lease_lost", str(error))
        except StoreUnavailable as error:
            _log.warning("%s", error)
            return _refusal(503, "store_unavailable", str(error), {"retry-after": "2"})
        except BadInput as error:  # a file of ours was damaged: an operator must know
            _log.error("%s", error)
            return _refusal(500, "damaged", str(error))
        except ValidationError as error:
            return _refusal(422, "schema", str(error.errors(include_url=False)[0]["msg"]))
        except ValueError as error:
            return _refusal(422, "schema", str(error))

    return answer


def _refusal(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(ErrorBody(kind=kind, message=message).model_dump(), status, headers)


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


def _page() -> tuple[str, str]:
    """The page, and a policy that lets only its own script and style run: by their hashes."""
    text = files(__package__).joinpath("labelling_page.html").read_text(encoding="utf-8")
    script, style = (
        " ".join(f"'sha256-{_hash(block)}'" for block in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S))
        for tag in ("script", "style")
    )
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(block: str) -> str:
    return base64.b64encode(hashlib.sha256(block.encode()).digest()).decode("ascii")
