"""What all endpoints share: models that requests can name, their slots, measures, bodies read."""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import prometheus_client as prometheus
from starlette.requests import Request as HttpRequest

from eva_local.api import Ensemble
from eva_local.engine.request import AnyPrompt, Request, Weights
from eva_local.errors import EvaError, InputError
from eva_local.openai.request import given, parsed
from eva_local.pages.frame import shipped
from eva_local.reading import did_you_mean, shown
from eva_local.server.guard import RefusedError, come_again
from eva_local.types import Score, Step

# Texts that are to be scored, each behind its prompt.
Texts = Sequence[tuple[AnyPrompt, str | Sequence[int]]]


_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
# What is measured: how, what it is, and by what it is told apart.
_MEASURES = json.loads(shipped("server/measures.json"))


class Measures:
    """What one server counts and times, as Prometheus reads it."""

    def __init__(self) -> None:
        #: All of it, for Prometheus.
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        how: dict[str, Any] = {"namespace": "eva_local", "registry": self.registry}
        timed = {"Histogram": {"buckets": _SECONDS}}
        self._of = {
            name: getattr(prometheus, kind)(name, *told, **how, **timed.get(kind, {}))
            for name, (kind, *told) in _MEASURES.items()
        }

    def count(self, name: str, *of: object, by: float = 1) -> None:
        """Count one more of something, or `by` so many."""
        self._of[name].labels(*of).inc(by)

    def watch(self, model: "ServedModel") -> None:
        """Tell from now on how busy an ensemble is."""
        ensemble, slots = model.ensemble, model.slots
        counts: dict[str, Callable[[], float]] = {
            "taken": lambda: slots.taken,
            "running": lambda: ensemble.scheduler.n_running,
            "waiting": lambda: ensemble.scheduler.n_waiting,
            "places": lambda: ensemble.n_slots,
        }
        for name, count in counts.items():
            self._of[f"answers_{name}"].labels(model.name).set_function(count)

    def hear(self, name: str, step: Step) -> None:
        """Count what an answer of a model says."""
        if step.piece:
            self.count("tokens", name)
        if (usage := step.usage) is not None:
            for member, count in zip(usage.members, usage.prompt_tokens, strict=True):
                self.count("prompt_tokens", name, member, by=count)
            self.count("drafted_tokens", name, "yes", by=usage.accepted)
            self.count("drafted_tokens", name, "no", by=usage.drafted - usage.accepted)
            self._of["first_token_seconds"].labels(name).observe(usage.first_seconds)
            self._of["answer_seconds"].labels(name).observe(usage.seconds)


class Slots:
    """Counts the answers of one ensemble, for one thread: that of the event loop."""

    def __init__(self, n_slots: int, n_waiting: int) -> None:
        self._most = n_slots + n_waiting
        self.taken: int = 0

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Let `count` answers in for a `with` block; refuse where all is full, or ever would be."""
        if count > (most := self._most):
            what = f"{count} answers are asked for at once, and {most} can be; ask for less"
            raise RefusedError(400, what)
        if self.taken + count > self._most:
            raise come_again("too many answers are asked for at this moment", "queue_full")
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a request can name: an ensemble, or with `alone` one member of it."""

    name: str
    ensemble: Ensemble
    slots: Slots
    alone: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def members(self) -> tuple[str, ...]:
        """Who writes."""
        return self.ensemble.members if self.alone is None else (self.alone,)

    @property
    def n_ctx(self) -> int:
        """How many tokens of the shared space fit at most, prompt and answer together."""
        sizes = dict(zip(self.ensemble.members, self.ensemble.n_ctx, strict=True))
        return min(sizes[name] for name in self.members)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids that a text has."""
        return self.ensemble.tokenize(text, alone=self.alone)

    def piece(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that ids stand for."""
        return self.ensemble.detokenize(ids, alone=self.alone)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text that ids stand for."""
        return self.piece(ids).decode("utf-8", "replace")

    async def run(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Step | Score]]:
        """Yield what is told of each request, with its number; raise the first error of one."""
        async with contextlib.aclosing(self.ensemble.arun_many(requests)) as all_told:
            async for number, told in all_told:
                if isinstance(told, EvaError):
                    raise told
                yield number, told

    async def score(self, texts: Texts, weights: Weights | None, n_top: int | None) -> list[Score]:
        """Score texts after their prompts, with `n_top` by symbol; raise the first error."""
        how: dict[str, Any] = {"n_top": n_top or 0, "symbols": n_top is not None}
        how |= {"alone": self.alone, "weights": weights}
        requests = [Request(prompt, continuation=text, **how) for prompt, text in texts]
        async with contextlib.aclosing(self.run(requests)) as all_told:
            scores = {number: told async for number, told in all_told if isinstance(told, Score)}
        return [scores[number] for number in range(len(requests))]


@dataclass(slots=True)
class Service:
    """One server's models, in the order of the command line, and measures.

    Where it may `trust_templates`, requests can bring chat templates of their own. Keys that it
    does not know are refused, unless it `takes_unknown` ones, with a warning.
    """

    trust_templates: bool = False
    takes_unknown: bool = False
    measures: Measures = field(default_factory=Measures)
    _models: dict[str, ServedModel] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether the models are open."""
        return bool(self._models)

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models; raises RefusedError while they are loading."""
        if not self._models:
            raise come_again("the models are loading", "loading")
        return tuple(self._models.values())

    def named(self, name: object) -> ServedModel:
        """Return a model by its name, or the first without one; refuse what is no name."""
        first, *_ = self.models
        if name is None:
            return first
        # ollama's clients put a tag behind a name that has none.
        if isinstance(name, str) and name.removesuffix(":latest") in self._models:
            return self._models[name.removesuffix(":latest")]
        status = 404 if isinstance(name, str) else 400
        what = f"model {shown(name)} is not here; {did_you_mean(str(name)[:60], self._models)}"
        raise RefusedError(status, what, code="model_not_found", param="model")

    def open(self, ensembles: Sequence[Ensemble], n_waiting: int) -> None:
        """Offer ensembles from now on, before each of which `n_waiting` answers may wait."""
        models = []
        for ensemble in ensembles:
            name, slots = ensemble.spec.name, Slots(ensemble.n_slots, n_waiting)
            models.append(ServedModel(name, ensemble, slots))
            self.measures.watch(models[-1])
            alone = dict.fromkeys(ensemble.members) if len(ensemble.members) > 1 else ()
            models += [ServedModel(f"{name}/{each}", ensemble, slots, each) for each in alone]
        self._models = {model.name: model for model in models}


def service_of(request: HttpRequest) -> Service:
    """Return the service that a request came to."""
    service: Service = request.app.state.service
    return service


async def asked(request: HttpRequest) -> tuple[ServedModel, dict[str, object]]:
    """Return the model that a request names, and its body's JSON object; raise InputError."""
    try:
        # Bytes would be read as UTF-16, too, and leniently; some clients put a mark in front.
        body, twice = parsed((await request.body()).decode("utf-8-sig"), _refuse_constant)
        # JSON can name half a character, which is no text.
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError("the body holds half of a surrogate pair, which is no text") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {str(error) or 'too deep'}") from error
    if twice:
        raise InputError(f"the body has the key {shown(twice[0])} twice: give it once")
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    return service_of(request).named(body.get("model")), given(body)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
