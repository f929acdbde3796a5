"""The ASGI application: OpenAI's interface to one model at many depths.

`create_app` takes a loaded model or what loads one, so that whatever runs ASGI applications can run it: uvicorn for
`depthdial serve`, Ray Serve, or a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from depthdial.serve import asked
from depthdial.serve.depths import Chosen
from depthdial.serve.endpoints import Endpoint
from depthdial.serve.errors import ApiError, Json
from depthdial.serve.guard import HEALTH, Guard
from depthdial.serve.invalid import invalid
from depthdial.serve.playground import playground_router
from depthdial.serve.playground.facts import PageFacts
from depthdial.serve.replies import version
from depthdial.serve.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from depthdial.serve.service import Ready, Service, Source
from depthdial.serve.settings import ServeSettings

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in (
        (400, "A field that cannot be used"),
        (401, "No API key, or a wrong one"),
        (404, "No such model"),
        (413, "The body is too large"),
        (415, "The body is not JSON"),
        (429, "Too many requests wait"),
        (503, "The model is loading"),
        (504, "The time is over"),
    )
}


def create_app(
    source: Source,
    settings: ServeSettings | None = None,
    *,
    keys: Sequence[str] = (),
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application.

    Args:
        source: a `Served` model, or a function that loads one, called in a thread when the application starts.
        keys: API keys, without one of which nothing but /health answers; none for everybody.
        on_failure: called if the model cannot be loaded; `app.state.service.failure` is then why.

    Example:
        >>> from depthdial.serve.app import create_app
        >>> from depthdial.serve.service import Served
        >>> app = create_app(lambda: Served.of(model, tokenizer, "tiny"))
        >>> "/v1/chat/completions" in app.openapi()["paths"]
        True
    """
    settings = settings or ServeSettings()
    service = Service(source, settings, on_failure)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="Depthdial",
        description="One model at many depths: OpenAI's interface, with the field `depth`.",
        version=version(),
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.service, app.state.settings, app.state.created = service, settings, int(time.time())
    _add_routes(app)
    _add_errors(app)
    app.include_router(playground_router(lambda: PageFacts.of(service.ready.depths, service.ready.tokenizer)))

    def on_response(path: str, status: int) -> None:
        if service.metrics is not None:
            service.metrics.responded(path, status)

    app.add_middleware(Guard, keys=keys, max_body_bytes=settings.max_body_bytes, on_response=on_response)
    return app


def _add_routes(app: FastAPI) -> None:
    posts = {"/v1/chat/completions": chat, "/v1/completions": complete, "/tokenize": tokenize, "/detokenize": detokenize}
    gets = {HEALTH: health, "/version": tell_version, "/metrics": metrics, "/v1/models": models} | {
        "/tokenizer_info": tokenizer_info
    }
    for path, endpoint in posts.items():
        app.add_api_route(path, endpoint, methods=["POST"], responses=_ERRORS, response_model=None)
    for path, endpoint in (gets | {"/v1/models/{model_id:path}": model}).items():
        app.add_api_route(path, endpoint, methods=["GET"], responses=_ERRORS, response_model=None)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def told(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def unreadable(_: Request, error: RequestValidationError) -> Response:
        return invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def others(request: Request, error: HTTPException) -> Response:
        told = {
            400: "The body is not JSON: send an object with the request's fields.",
            404: f"There is no {request.url.path[:100]}: see /openapi.json.",
            405: "This path has another method: see /openapi.json.",
        }
        return ApiError(error.status_code, told.get(error.status_code, str(error.detail)), headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return ApiError(
            500, f"The request failed ({type(error).__name__}): send it again.", code="internal_error"
        ).response()


def _ready(http: Request) -> Ready:
    return http.app.state.service.ready


def _endpoint(http: Request) -> Endpoint:
    return Endpoint(_ready(http), http.app.state.settings)


async def chat(body: ChatRequest, http: Request) -> Response:
    """Answer a chat, at once or as a stream."""
    return await _endpoint(http).chat(body, http)


async def complete(body: CompletionRequest, http: Request) -> Response:
    """Continue prompts, at once or as a stream; with echo and logprobs, score them."""
    return await _endpoint(http).complete(body, http)


async def tokenize(body: TokenizeRequest, http: Request) -> Response:
    """The tokens of a text, or of a chat."""
    ready = _ready(http)
    ready.depths.choose(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Either a prompt or messages are tokenized: give one of them.", param="prompt", code="invalid")

    if body.messages is not None and body.add_special_tokens:
        raise ApiError(
            400,
            "The field add_special_tokens is for prompts: a chat template writes its own.",
            param="add_special_tokens",
            code="unsupported_value",
        )

    def read() -> tuple[int, ...]:
        if body.messages is not None:
            return asked.chat_ids(body.messages, ready.tokenizer)
        if body.add_special_tokens is False or not body.prompt:
            return asked.bare_ids(body.prompt or "", ready.tokenizer)
        return asked.text_ids(body.prompt, ready.tokenizer)

    ids = await _reading(ready, read)
    return Json({"count": len(ids), "max_model_len": ready.engine.context_tokens, "tokens": list(ids)})


async def detokenize(body: DetokenizeRequest, http: Request) -> Response:
    """The text of tokens."""
    ready = _ready(http)
    ready.depths.choose(body.model)
    most = len(ready.tokenizer)
    unknown = next((token for token in body.tokens if not 0 <= token < most), None)
    if unknown is not None:
        raise ApiError(
            400, f"Token {unknown} is not in the vocabulary: ids are 0 to {most - 1}.", param="tokens", code="invalid"
        )
    return Json({"prompt": await _reading(ready, lambda: str(ready.tokenizer.decode(body.tokens)))})


async def tokenizer_info(http: Request) -> Response:
    """Special tokens and the chat template, as of vLLM: lm-evaluation-harness takes the server's tokenizer by it."""
    tokenizer = _ready(http).tokenizer
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
    found = {name: getattr(tokenizer, name, None) for name in names}
    return Json({"tokenizer_class": type(tokenizer).__name__, **found})


async def health(http: Request) -> Response:
    """200 once requests can be answered, 503 before."""
    try:
        _ready(http)
    except ApiError as error:
        return Json(
            {"status": "failed" if http.app.state.service.failure else "loading"}, error.status, headers=error.headers
        )
    return Json({"status": "ok"})


async def tell_version(http: Request) -> Response:
    """The version of the server."""
    return Json({"version": version()})


async def metrics(http: Request) -> Response:
    """Prometheus metrics."""
    return Response(await run_in_threadpool(_ready(http).metrics.render), media_type=CONTENT_TYPE_LATEST)


async def models(http: Request) -> Response:
    """The model, and the same at depths that have an id of their own."""
    ready = _ready(http)
    depths = ready.depths
    default = depths.read(depths.default)
    data = [_entry(http, ready, depths.name, default)]
    data += [_entry(http, ready, depths.model_id(one), one) for one in depths.listed()]
    return Json({"object": "list", "data": data})


async def model(model_id: str, http: Request) -> Response:
    """One model id, at any depth."""
    ready = _ready(http)
    return Json(_entry(http, ready, model_id, ready.depths.choose(model_id)))


def _entry(http: Request, ready: Ready, model_id: str, chosen: Chosen) -> dict[str, Any]:
    route, depths = chosen.route, ready.depths
    return {
        "id": model_id,
        "object": "model",
        "created": http.app.state.created,
        "owned_by": "depthdial",
        "root": depths.name,
        "parent": None if model_id == depths.name else depths.name,
        "max_model_len": ready.engine.context_tokens,
        "depthdial": {
            "depth": chosen.label,
            "route": None if route is None else route.name,
            "route_layers": None if route is None else str(route),
            "layers_run": None if route is None else len(route),
            "layers": depths.n_layers,
        },
    }


async def _reading(ready: Ready, read: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(ready.reading, read)
