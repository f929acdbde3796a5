"""What a server serves, and how it comes and goes: the model loads in a thread while `/health` says that it does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from depthdial.control.controller import SequenceController
from depthdial.engine.engine import Engine
from depthdial.routes.families import RouteFamily
from depthdial.serve.depths import Depths
from depthdial.serve.errors import ApiError
from depthdial.serve.metrics import Metrics
from depthdial.serve.running import Gate
from depthdial.serve.settings import ServeSettings
from depthdial.serve.shadow import Shadow
from depthdial.serve.tokens import TokenTexts

_log = logging.getLogger("depthdial.serve")


@dataclass(frozen=True)
class Served:
    """A model on its engine, ready to answer.

    Attributes:
        engine: that runs it.
        depths: that requests may name.
    """

    engine: Engine
    depths: Depths

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        name: str,
        settings: ServeSettings | None = None,
        *,
        families: Sequence[RouteFamily] = (),
        controller: SequenceController | None = None,
    ) -> Served:
        """A loaded model with an engine of its own.

        Args:
            name: the model's id.
            families: of routes that requests may name, the first of which numbers are chosen from.
            controller: what the depth `controller` stands for.

        Raises:
            InputError: for settings, routes or a controller that do not fit the model.

        Example:
            >>> from depthdial.serve.service import Served
            >>> served = Served.of(model, tokenizer, "tiny", families=[dd.RouteFamily("mine", 6, (dd.Route((0, 5), 6),))])
            >>> [served.depths.model_id(one) for one in served.depths.listed()][0]
            'tiny:mine-2'
            >>> served.engine.close()
        """
        settings = settings or ServeSettings()
        depths = Depths(
            model,
            settings.served_name or name,
            families=families,
            controller=controller,
            default=settings.depth,
            efforts=settings.effort_depths,
            are_usual=settings.efforts is None,
        )
        engine = Engine(
            model,
            tokenizer,
            max_rows=settings.max_rows,
            max_tokens=settings.max_tokens,
            chunk_tokens=settings.chunk_tokens,
            schedule=settings.schedule,
            latency=settings.latency,
        )
        return cls(engine, depths)


Source = Served | Callable[[], Served]


class Ready:
    """Everything that answers need once the model is there."""

    def __init__(self, served: Served, settings: ServeSettings) -> None:
        self.engine, self.depths = served.engine, served.depths
        self.tokenizer = served.engine.tokenizer
        self.texts = TokenTexts(self.tokenizer)
        self.gate = Gate(settings.max_rows, settings.max_waiting)
        self.metrics = Metrics(served.depths.name)
        self.metrics.watch(served.engine.stats)
        controller = served.depths.controller
        if controller is not None and controller.certificate is not None:
            plan = controller.certificate.plan
            self.metrics.certified(plan.metric, plan.epsilon)
        self.shadow = Shadow(served.engine, settings.shadow_share, self.metrics)
        # Tokenizers are not made for several threads, and long prompts would hold up the event loop.
        self.reading = ThreadPoolExecutor(1, "depthdial-reading")


class Service:
    """A server's model from start to end.

    Args:
        source: what to serve, or what loads it.
        on_failure: called if it cannot be loaded.

    Attributes:
        failure: why it could not be loaded.
    """

    def __init__(self, source: Source, settings: ServeSettings, on_failure: Callable[[], None] = lambda: None) -> None:
        self._source, self._settings = source, settings
        self._ready: Ready | None = None
        self._is_closing = False
        self.on_failure, self.failure = on_failure, None
        self._thread: threading.Thread | None = None

    failure: Exception | None

    @property
    def ready(self) -> Ready:
        """What answers need.

        Raises:
            ApiError: 503 while the model loads, and after it could not be.
        """
        if self._ready is None or self._is_closing:
            told = "is shutting down" if self._is_closing else "could not load its model" if self.failure else "is loading"
            raise ApiError(503, f"The server {told}: try again later.", code="model_not_ready", headers={"Retry-After": "2"})
        return self._ready

    @property
    def metrics(self) -> Metrics | None:
        return None if self._ready is None else self._ready.metrics

    def start(self) -> None:
        """Begin to load; what is loaded already is there at once."""
        if isinstance(self._source, Served):
            self._ready = Ready(self._source, self._settings)
            return
        self._thread = threading.Thread(target=self._load, args=(self._source,), name="depthdial-loading", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cancel what still runs, and end the engine's thread. Its model is not touched."""
        self._is_closing = True
        if self._ready is not None:
            self._ready.engine.close(cancel=True)
            self._ready.reading.shutdown(cancel_futures=True)

    def _load(self, source: Callable[[], Served]) -> None:
        try:
            ready = Ready(source(), self._settings)
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        if self._is_closing:
            ready.engine.close(cancel=True)
            return
        self._ready = ready
        _log.info("%s is ready.", ready.depths.name)
