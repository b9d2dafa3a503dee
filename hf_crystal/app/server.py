"""The HTTP server of `hf-crystal serve`: typed requests with limits, an OpenAPI page, health, metrics.

Nothing of a request is kept: no access log, no files, no text in metrics.
"""

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, create_model
from transformers import AutoConfig

from .. import __version__
from ..loading import resolve_model
from .reading import MAX_BYTES, description_of
from .tools import (
    BatchRequest,
    Crystal,
    DescribeRequest,
    GenerateRequest,
    PredictRequest,
    Refused,
    Tools,
    faults_of,
    pieces,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["TIME_LIMIT", "build_server", "run_server"]

TIME_LIMIT = 60.0  # s, from the request to its answer
_MAX_CONNECTIONS = 100  # more are answered with 503
_MAX_BODY = 2 * MAX_BYTES  # JSON escapes line ends
_PATIENCE = 30.0  # s, for the head of a request after the last byte, and for its whole body after its head
_READERS = 2  # processes of `CrystalReaders`
_LAST_COMPUTATION = 60  # s, at the end of the server, for what has begun within the time of its request
_PIECE_ATOMS, _PIECE_SIZE = 2000, 16  # of a batch; between pieces others have their turn
_INTRODUCTION = (
    "Predict properties of crystals, generate crystals, describe crystals; results have the fields of the command "
    "line's JSON. A crystal is the text of a file or its arrays, never a path. Nothing of a request is kept."
)


class Problem(BaseModel):
    """Why a request has no answer."""

    detail: str


class Prediction(BaseModel):
    """Result of one crystal, with the values of its model; `error` in place of them where it has none."""

    model_config = ConfigDict(extra="allow")
    source: str
    model: str | None = None
    formula: str | None = None
    num_atoms: int | None = None
    disorder: str | None = None
    warnings: list[str] | None = None
    error: str | None = None


class Predictions(BaseModel):
    """Results of a batch, in its order."""

    results: list[Prediction]


def _described(tools: Tools) -> tuple[type[Prediction], type[Predictions]]:
    """The answers with a field for each value that a served model gives, so that clients can be generated."""
    fields: dict[str, Any] = {"is_metal": (bool | None, Field(None, description="metal_probability above 0.5"))}

    def number(name: str, description: str) -> None:
        fields[name] = (float | None, Field(None, description=description))

    def value(name: str, unit: str, meaning: str) -> None:
        number(name, meaning)
        fields[f"{name}_unit"] = (str | None, Field(None, description=f"unit of {name}: {unit}"))
        number(f"{name}_standard_error", "of crystals like this one 68 % have a smaller error")
        for end in ("low", "high"):
            number(f"{name}_{end}", "end of an interval that holds 90 %")

    number("metal_probability", "that the band gap is 0")
    for model in tools.models.values():
        config = AutoConfig.from_pretrained(resolve_model(model))
        for name, unit in zip(config.target_names, config.target_units, strict=True):
            value(name, unit, f"{name.replace('_', ' ')}, {unit}" if unit else name)
    value("e_above_hull", "eV/atom", "with `stability`: distance from the hull of known phases; null: not known")
    fields["decomposes_to"] = (str | None, Field(None, description="with `stability`: phases of the hull, by atoms"))
    one = create_model("Prediction", __base__=Prediction, **fields)
    return one, create_model("Predictions", __base__=Predictions, results=(list[one], ...))  # type: ignore[valid-type]


class Description(BaseModel):
    """The one form that all descriptions of a crystal lead to; `num_atoms` and `volume` (Å³) are of the cell given."""

    source: str
    formula: str
    num_atoms: int
    num_atoms_primitive: int
    volume: float
    space_group: str
    space_group_number: int
    crystal_system: str
    sequence: str
    warnings: list[str]


class GeneratedCrystal(BaseModel):
    """A generated crystal; `num_atoms` and `volume` (Å³) are of its primitive cell.

    `score`: share by energy of a known crystal, of the votes of a prototype; `probability`: that a prototype of a
    formula without known crystals is its lowest, if that lies near the hull; `known_e_above_hull`: of a known crystal,
    calculated, eV/atom; `log_likelihood`: of what follows the composition where a formula was asked for, else of the
    generated part.
    """

    formula: str
    space_group: str
    num_atoms: int
    volume: float
    log_likelihood: float | None
    score: float | None
    probability: float | None
    known_e_above_hull: float | None
    source: str
    sequence: str
    warnings: list[str]
    cif: str


class Generated(BaseModel):
    """Generated crystals: known ones by energy, known prototypes by votes and energy, the model's by likelihood."""

    crystals: list[GeneratedCrystal]


class Health(BaseModel):
    """What is served; the digest of a model changes where its files do."""

    status: str
    version: str
    models: list[str]
    generator: str | None
    digests: dict[str, str]


class _Endpoints:
    """Answers; one prediction and one generation at a time, others wait in order until their time is over."""

    def __init__(self, tools: Tools, time_limit: float) -> None:
        self.tools, self.time_limit, self.measures = tools, time_limit, _Measures()
        self._predicting, self._generating = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
        self._reading = anyio.CapacityLimiter(_READERS)

    async def _predict(self, function: Callable[[], Any]) -> Any:
        """Value of a function that uses the property models."""
        return await to_thread.run_sync(function, limiter=self._predicting)

    async def _read(self, crystals: list[Any], *arguments: Any) -> Any:
        """What `Tools.read` gives."""
        return await to_thread.run_sync(self.tools.read, crystals, *arguments, limiter=self._reading)

    async def predict(self, request: PredictRequest) -> dict[str, Any]:
        """Values of the model, each with its unit, standard error and interval; the default model is the first."""
        self.tools.finish(request.model, False)
        options = request.model_dump(include={"model", "stability", "unseen"})
        with self.measures.unanswered("predict", 1), anyio.fail_after(self.time_limit):
            records = await self._read([request.crystal])
            (result,) = await self._predict(lambda: self.tools.predict(records, **options))
        self.measures.crystals("predict", [result])
        if "error" in result:
            raise Refused(result["error"])
        return {"source": request.crystal.name or "crystal 0", **result}

    async def predict_batch(self, request: BatchRequest) -> dict[str, Any]:
        """A crystal that cannot be read gives `error`; the others are predicted."""
        self.tools.finish(request.model, False)
        options = request.model_dump(include={"model", "stability", "unseen"})
        results: list[dict[str, Any]] = []
        with self.measures.unanswered("predict", len(request.crystals)):
            try:
                with anyio.fail_after(self.time_limit):
                    records = await self._read(request.crystals)
                    for piece in pieces(records, _PIECE_ATOMS, _PIECE_SIZE):
                        results += await self._predict(functools.partial(self.tools.predict, piece, **options))
            except TimeoutError:
                if not results:
                    raise
        reason = f"not predicted: those before it took more than {self.time_limit:g} s"
        results += [{"error": reason} for _ in request.crystals[len(results) :]]
        self.measures.crystals("predict", results)
        names = (
            (isinstance(crystal, Crystal) and crystal.name) or f"crystal {place}"
            for place, crystal in enumerate(request.crystals)
        )
        named = zip(names, results, strict=True)
        return {"results": [{"source": name, **result} for name, result in named]}

    async def generate(self, request: GenerateRequest) -> Generated:
        """Known crystals of a formula first, then prototypes and those of the language model; see `source`."""
        with anyio.fail_after(self.time_limit):
            crystals: Any = await to_thread.run_sync(self.tools.generate, request, limiter=self._generating)
        self.measures.crystals("generate", crystals)
        return Generated(crystals=crystals)

    async def describe(self, request: DescribeRequest) -> Description:
        """All descriptions of a crystal have one sequence; sheets, molecules and disordered crystals have none."""
        with self.measures.unanswered("describe", 1), anyio.fail_after(self.time_limit):
            (found,) = await self._read([request.crystal], description_of)
        if isinstance(found, str):
            self.measures.crystals("describe", [{"error": found}])
            raise Refused(found)
        self.measures.crystals("describe", [found])
        return Description(source=request.crystal.name or "crystal 0", **found)

    async def health(self) -> Health:
        """Answers from when the models are loaded, during computations too."""
        models, generator = list(self.tools.models), self.tools.generator
        return Health(status="ok", version=__version__, models=models, generator=generator, digests=self.tools.digests)


def build_server(tools: Tools | None = None, time_limit: float = TIME_LIMIT) -> "FastAPI":
    """The server as an ASGI application; call `run_server` to serve it.

    Args:
        tools: what answers; the embedded models by default.
        time_limit: Seconds for one request, waiting included; afterwards it is answered with 503. A computation that
            has begun is finished: its size is limited.

    Raises:
        ImportError: FastAPI and what belongs to it are not installed.
    """
    try:
        from fastapi.responses import RedirectResponse, Response
        from fastapi_offline import FastAPIOffline
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
        from starlette.middleware.body_limit import RequestBodyLimitMiddleware
    except ImportError as error:
        raise ImportError("the server needs FastAPI and more: pip install 'hf_crystal[serve]'") from error

    endpoints = _Endpoints(tools or Tools(), time_limit)

    @contextlib.asynccontextmanager
    async def lifespan(_: "FastAPI") -> AsyncIterator[None]:
        await to_thread.run_sync(endpoints.tools.warm_up)
        yield

    codes = {
        400: "No text that could be JSON.",
        408: "The body did not come.",
        413: "Too large.",
        422: "Refused, with the reason.",
        500: "The server failed; it was not the request's fault.",
        503: "Busy: try again.",
    }
    app: FastAPI = FastAPIOffline(
        title="hf_crystal",
        version=__version__,
        description=_INTRODUCTION,
        lifespan=lifespan,
        redoc_url=None,
        responses={code: {"model": Problem, "description": text} for code, text in codes.items()},
    )
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=_MAX_BODY)  # inside `measure`, which words its answer
    app.add_middleware(_BodyDeadline, seconds=min(_PATIENCE, time_limit))
    app.add_middleware(_Departures)
    _add_problems(app, endpoints.measures, time_limit)

    one, many = "Predict properties of one crystal.", "Predict properties of several crystals."
    result, results = _described(endpoints.tools)
    whole: dict[str, Any] = {"response_model_exclude_unset": True}
    app.post("/predict", summary=one, response_model=result, **whole)(endpoints.predict)
    app.post("/predict/batch", summary=many, response_model=results, **whole)(endpoints.predict_batch)
    app.post("/generate", summary="Generate crystals.")(endpoints.generate)
    app.post("/describe", summary="Space group, formula and canonical sequence of one crystal.")(endpoints.describe)
    app.get("/health", summary="Whether the server works, and what it serves.")(endpoints.health)

    @app.get("/metrics", summary="Counts and times for Prometheus.", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(endpoints.measures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    return app


class _BodyDeadline:
    """ASGI middleware: a body that is not complete in time is answered with 408, or it would hold a connection."""

    def __init__(self, app: Any, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from fastapi import HTTPException

        deadline, complete = anyio.current_time() + self._seconds, scope["type"] != "http"

        async def timely() -> Any:
            nonlocal complete
            if complete:  # what comes now is the end of the connection
                return await receive()
            with anyio.move_on_after(deadline - anyio.current_time()):
                message = await receive()
                complete = not message.get("more_body", False)
                return message
            # FastAPI makes 400 of every other error here
            raise HTTPException(408, f"the body of the request is not complete after {self._seconds:g} s")

        await self._app(scope, timely, send)


class _Departures:
    """ASGI middleware: whose client has gone gives up its place in the queue; it is counted with status 499."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        complete, answered = anyio.Event(), False
        failure: Exception | None = None

        async def reading() -> Any:
            message = await receive()
            if not message.get("more_body", False):
                complete.set()
            return message

        async def answering(message: Any) -> None:
            nonlocal answered
            await send(message)
            answered = True  # not before: the end of the connection may come in between

        async def watch(scope: anyio.CancelScope) -> None:
            await complete.wait()
            await receive()  # after the body there is only the end of the connection
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch, group.cancel_scope)
            try:
                await self._app(scope, reading, answering)
            except Exception as error:  # a group would wrap it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not answered:  # nobody reads it, but it is counted
            await send({"type": "http.response.start", "status": 499, "headers": []})
            await send({"type": "http.response.body"})


def _add_problems(app: "FastAPI", measures: "_Measures", time_limit: float) -> None:
    """Word what goes wrong, and measure requests."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response

    def problem(status: int, detail: str) -> JSONResponse:
        headers = {"Retry-After": "5"} if status == 503 else None
        return JSONResponse({"detail": detail}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, faults_of(error.errors()))

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return problem(422, str(error))

    @app.exception_handler(TimeoutError)
    async def late(_: Request, __: TimeoutError) -> JSONResponse:
        return problem(503, f"no turn within {time_limit:g} s; try again later")

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:  # the log has the trace
        return problem(500, f"the server failed ({type(error).__name__}); it was not the request's fault")

    @app.middleware("http")
    async def measure(request: Request, call_next: Callable[[Request], Any]) -> Response:
        start, status = time.perf_counter(), 500  # of an error, whose answer is made outside
        try:
            with measures.in_progress.track_inprogress():
                response: Response = await call_next(request)
            if response.status_code == 413:  # of the limit, in plain text
                response = problem(413, f"the request has more than {_MAX_BODY} bytes; no more are read")
            status = response.status_code
        finally:
            route = request.scope.get("route")
            measures.request(getattr(route, "path", "other"), status, time.perf_counter() - start)
        return response


class _Measures:
    """What is counted, in a registry of its own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        named: dict[str, Any] = {"registry": self.registry, "namespace": "hf_crystal"}
        self._requests = Counter("requests", "Requests by endpoint and status.", ["endpoint", "status"], **named)
        bounds = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 90, 120)
        words = "Time of a request, s."
        self._seconds = Histogram("request_seconds", words, ["endpoint"], buckets=bounds, **named)
        self.in_progress = Gauge("requests_in_progress", "Requests being answered, or waiting for it.", **named)
        self._crystals = Counter("crystals", "Crystals by task and outcome.", ["task", "outcome"], **named)
        self._doubtful = Counter("crystals_with_warnings", "Crystals whose result has warnings.", ["task"], **named)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(endpoint, status).inc()
        self._seconds.labels(endpoint).observe(seconds)

    @contextlib.contextmanager
    def unanswered(self, task: str, num: int) -> Iterator[None]:
        """Count so many crystals as failed where their request gets no turn in time, or the server has a fault."""
        try:
            yield
        except Exception:
            self._crystals.labels(task, "failed").inc(num)
            raise

    def crystals(self, task: str, results: list[dict[str, Any]]) -> None:
        """Count crystals with and without a result."""
        failed = sum("error" in result for result in results)
        self._crystals.labels(task, "failed").inc(failed)
        self._doubtful.labels(task).inc(sum(bool(result.get("warnings")) for result in results))
        self._crystals.labels(task, "done").inc(len(results) - failed)


def _impatient_protocol() -> type:
    """HTTP/1.1 of uvicorn, which waits without end for the head of a first request: here for a time."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ImpatientProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()

        def _wait(self) -> None:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(_PATIENCE, self.timeout_keep_alive_handler)

    return ImpatientProtocol


def run_server(app: "FastAPI", host: str, port: int, time_limit: float = TIME_LIMIT) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have begun are finished.

    Args:
        app: what `build_server` returned.
        host, port: address.
        time_limit: seconds that these requests have.

    Raises:
        RuntimeError: the server could not start.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=_impatient_protocol(),
        ws="none",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=round(time_limit) + _LAST_COMPUTATION,
    )
    # uvicorn raises again the signal that ended it
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        server.run()
    if not server.started:
        raise RuntimeError(f"the server could not start at {host}:{port}")
