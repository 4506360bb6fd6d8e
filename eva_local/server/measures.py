"""What is counted and timed, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import Response

from eva_local.server.lanes import Echo
from eva_local.server.models import Model, Models
from eva_local.types import Step

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Measures:
    """The counters of one server."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "eva_local_requests", "Requests answered.", ("path", "status"), registry=self._registry
        )
        self._written = Counter(
            "eva_local_tokens", "Tokens written.", ("model",), registry=self._registry
        )
        self._read = Counter(
            "eva_local_prompt_tokens",
            "Tokens of prompts of answers that came to their end, as each member reads them.",
            ("model", "member"),
            registry=self._registry,
        )
        self._first = Histogram(
            "eva_local_first_token_seconds",
            "From a place to the first token.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._whole = Histogram(
            "eva_local_answer_seconds",
            "From a place to the end of an answer.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._state = {
            name: Gauge(f"eva_local_answers_{name}", help_, ("model",), registry=self._registry)
            for name, help_ in (
                ("taken", "Answers under way, those that wait among them."),
                ("running", "Answers that are being written."),
                ("waiting", "Answers that wait for a place."),
                ("places", "Answers that can be written side by side."),
            )
        }

    def watch(self, models: Models) -> None:
        """Tell from now on how busy the ensembles are."""
        for model in models:
            if model.alone is not None:
                continue
            for what, read in _busyness(model).items():
                self._state[what].labels(model.name).set_function(read)

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def hear(self, model: Model, told: Echo | Step) -> None:
        """Count what an answer says."""
        if isinstance(told, Echo):
            return
        if told.piece:
            self._written.labels(model.name).inc()
        if told.usage is not None:
            usage = told.usage
            for member, count in zip(usage.members, usage.prompt_tokens, strict=True):
                self._read.labels(model.name, member).inc(count)
            self._first.labels(model.name).observe(usage.first_seconds)
            self._whole.labels(model.name).observe(usage.seconds)

    def response(self) -> Response:
        """Return all of it as text."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def _busyness(model: Model) -> dict[str, Callable[[], float]]:
    ensemble, places = model.ensemble, model.places
    return {
        "taken": lambda: places.taken,
        "running": lambda: ensemble.n_running,
        "waiting": lambda: ensemble.n_waiting,
        "places": lambda: ensemble.n_slots,
    }
