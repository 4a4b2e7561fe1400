"""The routes: from HTTP to the dispatcher and back, each failure with its status and an ErrorBody."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from rollcall.reward_service.protocol import ErrorBody, LoadRequest, ModelInfo, ModelList, ScoreRequest, ScoreResponse
from rollcall.reward_service.scheduling.dispatcher import Dispatcher
from rollcall.reward_service.scheduling.metrics import ServiceMetrics
from rollcall.reward_service.scheduling.refusals import RefusalKind, Refused
from rollcall.reward_service.scheduling.registry import Registry
from rollcall.reward_service.service import openapi_page
from rollcall.reward_service.service.guard import Guard, refusal

HEALTH_PATHS = ("/healthz", "/readyz")
DOCUMENT_PATHS = ("/", "/docs", "/openapi.json")
METRICS_PATH = "/metrics"
_KINDS: Mapping[int, RefusalKind] = {404: "not_found", 405: "method_not_allowed"}
_SHOWN = 3  # of what is wrong with one request

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound=BaseModel)


class Routes:
    """What the routes stand on; the guard is set when the app is put together."""

    def __init__(self, dispatcher: Dispatcher, registry: Registry, metrics: ServiceMetrics) -> None:
        self.dispatcher, self.registry, self.metrics = dispatcher, registry, metrics
        self.guard: Guard | None = None

    def router(self) -> APIRouter:
        router = APIRouter()
        refusals = _documented(401, 404, 408, 413, 422, 429, 503, 504)
        router.post("/v1/score", responses=refusals, **_takes(ScoreRequest, ScoreResponse))(self.score)
        router.get("/v1/models", response_model=ModelList, responses=_documented(401))(self.models)
        loads = _documented(401, 409, 422, 503)
        router.post("/v1/models/{name}:load", responses=loads, **_takes(LoadRequest, ModelInfo))(self.load)
        router.get("/healthz", response_class=JSONResponse)(self.healthz)
        router.get("/readyz", response_class=JSONResponse, responses=_documented(503))(self.readyz)
        router.get(METRICS_PATH, response_class=Response)(self.metrics_page)
        return router

    async def score(self, request: Request) -> Response:
        """Scores items with one model. Every result has a score or an error; a request that fails has neither."""
        asked = parse(ScoreRequest, await request.body())
        _check_items(asked)
        response = await self.dispatcher.score(asked, arrived=request.state.arrived, gone=partial(_gone, request))
        return _json(response)

    async def models(self, request: Request) -> Response:
        """The models that can be asked now."""
        return _json(ModelList(models=self.registry.infos()))

    async def load(self, name: str, request: Request) -> Response:
        """Builds a reward model aside and puts it in the named one's place; requests under way end with the old one."""
        asked = parse(LoadRequest, await request.body())
        return _json(await self.registry.load(name, asked.path))

    async def healthz(self) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Response:
        """Every configured model can be asked, and the service is not ending."""
        reason = "draining" if self.guard is not None and self.guard.draining else self.registry.not_ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        kind: RefusalKind = "draining" if reason == "draining" else "stuck" if "stuck" in reason else "loading"
        return refusal(Refused(kind, reason, retry_after_s=2))

    async def metrics_page(self) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def create_app(routes: Routes, *, more: Sequence[APIRouter] = ()) -> FastAPI:
    """The application without its guard. `more` are other parts' routes, such as the labelling page's."""
    app = FastAPI(
        title="Rollcall reward service",
        description="Scores for text completions and for segments of experience.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.include_router(routes.router())
    for router in more:
        app.include_router(router)
    _add_documents(app)

    async def refuse(request: Request, error: Exception) -> Response:
        refused = _as_refusal(request, error)
        if isinstance(refused, Response):
            return refused
        request.state.outcome = refused.kind
        return refusal(refused)

    for kind in (Refused, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
    return app


def parse(model: type[_M], body: bytes) -> _M:
    """Raises:
    Refused: the body is no JSON, or not what the schema asks for; says where, and repeats little of it.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        kind: RefusalKind = "malformed" if problems[0]["type"] == "json_invalid" else "schema"
        raise Refused(kind, _what_is_wrong(problems)) from None


def _as_refusal(request: Request, error: Exception) -> Refused | Response:
    """What a route's exception means; a Response for statuses of Starlette's that are none of ours."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, RequestValidationError):
        return Refused("schema", _what_is_wrong(error.errors()))
    if isinstance(error, HTTPException):
        if error.status_code in _KINDS:
            text = f"{request.method} {request.url.path[:200]}: {error.detail}"
            return Refused(_KINDS[error.status_code], text)
        body = ErrorBody(kind=f"http_{error.status_code}", message=str(error.detail)).model_dump_json()
        return Response(body, error.status_code, error.headers, "application/json")
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return Refused("internal", f"the service failed: {type(error).__name__}")


def _what_is_wrong(problems: Sequence[Any]) -> str:
    lines = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'body'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in problems[:_SHOWN]
    ]
    more = len(problems) - len(lines)
    return "; ".join(line[:300] for line in lines) + (f"; and {more} more" if more else "")


def _check_items(request: ScoreRequest) -> None:
    """What the types cannot say: numbers are finite, and arrays are base64."""
    for index, item in enumerate(request.items):
        if item.metadata and not _finite(dict(item.metadata)):
            raise Refused("malformed", f"items.{index}.metadata: NaN and Infinity are no JSON numbers")
        if item.segment is not None:
            try:
                item.segment.observations.array()
                item.segment.actions.array()
            except ValueError as error:
                raise Refused("schema", f"items.{index}.segment: {error}") from None


def _finite(value: JsonValue) -> bool:
    """As deep as the parser lets it be: 200 levels."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, list) or all(map(_finite, value))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


def _takes(taken: type[BaseModel], given: type[BaseModel]) -> dict[str, Any]:
    """The documentation of a route that reads its body itself."""
    schema = {"$ref": f"#/components/schemas/{taken.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"response_model": given, "openapi_extra": {"requestBody": body}}


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


def _add_documents(app: FastAPI) -> None:
    """/openapi.json, and a page of it."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
            template = "#/components/schemas/{model}"
            taken = [(ScoreRequest, "validation"), (LoadRequest, "validation")]
            _, definitions = models_json_schema(taken, ref_template=template)  # type: ignore[arg-type]
            found["components"]["schemas"] = definitions["$defs"] | found["components"]["schemas"]
            app.openapi_schema = found
        return app.openapi_schema

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(document())

    @app.get("/docs", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        policy = {"content-security-policy": openapi_page.CONTENT_SECURITY_POLICY}
        return HTMLResponse(openapi_page.render(document()), headers=policy)
