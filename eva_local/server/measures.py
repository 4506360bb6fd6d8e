"""What is counted and timed, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import prometheus_client as prometheus
from starlette.responses import Response

from eva_local.types import Step

if TYPE_CHECKING:
    from eva_local.server.service import ServedModel

_NAMESPACE = "eva_local"
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_GAUGES: Mapping[str, tuple[str, Callable[[ServedModel], float]]] = {
    "taken": ("Answers under way, those that wait among them.", lambda model: model.slots.taken),
    "running": ("Answers being written.", lambda model: model.ensemble.scheduler.n_running),
    "waiting": ("Answers that wait for a place.", lambda model: model.ensemble.scheduler.n_waiting),
    "places": ("Answers that can be written side by side.", lambda model: model.ensemble.n_slots),
}


class Measures:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        counter = partial(prometheus.Counter, namespace=_NAMESPACE, registry=registry)
        gauge = partial(prometheus.Gauge, namespace=_NAMESPACE, registry=registry)
        histogram = partial(
            prometheus.Histogram, namespace=_NAMESPACE, registry=registry, buckets=_SECONDS
        )
        self._requests = counter("requests", "Requests answered.", ("path", "status"))
        self._written = counter("tokens", "Tokens written.", ("model",))
        self._read = counter(
            "prompt_tokens",
            "Tokens of prompts of answers that came to their end, as each member reads them.",
            ("model", "member"),
        )
        self._drafted = counter(
            "drafted_tokens",
            "Tokens decoded before they were chosen, by whether these came.",
            ("model", "came"),
        )
        first, whole = "From a place to the first token.", "From a place to the end of an answer."
        self._first = histogram("first_token_seconds", first, ("model",))
        self._whole = histogram("answer_seconds", whole, ("model",))
        self._gauges = {
            name: (gauge(f"answers_{name}", what, ("model",)), count)
            for name, (what, count) in _GAUGES.items()
        }

    def watch(self, model: ServedModel) -> None:
        """Tell from now on how busy an ensemble is."""
        for gauge, count in self._gauges.values():
            gauge.labels(model.name).set_function(partial(count, model))

    def answered(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def hear(self, name: str, step: Step) -> None:
        """Count what an answer of a model says."""
        if step.piece:
            self._written.labels(name).inc()
        if (usage := step.usage) is not None:
            for member, count in zip(usage.members, usage.prompt_tokens, strict=True):
                self._read.labels(name, member).inc(count)
            self._drafted.labels(name, "yes").inc(usage.accepted)
            self._drafted.labels(name, "no").inc(usage.drafted - usage.accepted)
            self._first.labels(name).observe(usage.first_seconds)
            self._whole.labels(name).observe(usage.seconds)

    def response(self) -> Response:
        """Return all of it as text."""
        text = prometheus.generate_latest(self._registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)
