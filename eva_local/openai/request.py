"""What a request asks for, in the shape of OpenAI's API, and options as JSON writes them."""

import difflib
import json
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args

from msgspec import to_builtins

from eva_local.engine.conversation import conversation
from eva_local.engine.request import AnyPrompt, Weights
from eva_local.errors import InputError
from eva_local.llama.prompt import Prompt
from eva_local.openai import shapes
from eva_local.pages.frame import shipped
from eva_local.reading import ReadError, UnknownKeyError, lean, read, shown
from eva_local.types import Sampling, Thinking, Tool, ToolChoice

Known = TypeVar("Known", bound=shapes.Options)
# What a JSON object says.
Values = Mapping[str, object]

Endpoint = Literal["/v1/chat/completions", "/v1/completions"]
CHAT, COMPLETION = get_args(Endpoint)

OPTIONS = tuple(field.name for field in fields(Sampling))
# Tables of keys; see there.
_TABLES = tomllib.loads(shipped("openai/keys.toml"))
ALIASES = {each: name for name, others in _TABLES["aliases"].items() for each in others}
IGNORED: Sequence[str] = _TABLES["ignored"]
_REFUSED: Values = {**dict.fromkeys(_TABLES["never"]), **_TABLES["refused"]}
_SERVED: Values = {**_TABLES["served"], "weights": None}
_ASKS_NOTHING: Values = {**_REFUSED, **_SERVED, "logprobs": False, "top_logprobs": 0}
#: What `read_options` reads.
OPTION_KEYS = tuple(dict.fromkeys((*OPTIONS, *ALIASES, *shapes.Options.__struct_fields__)))
_KINDS: Mapping[str, type[shapes.AnyRequest]] = {
    CHAT: shapes.ChatRequest,
    COMPLETION: shapes.CompletionRequest,
}
# What clients give with empty parts.
_CALLS: Mapping[str, Any] = {"tools": tuple[Tool, ...], "tool_choice": ToolChoice}
# The arguments by which chat templates are told to think.
_SWITCHES = ("enable_thinking", "thinking")
#: What the body of a request can say.
KEYS = frozenset((*OPTION_KEYS, *IGNORED, *_ASKS_NOTHING, "messages", "prompt"))

#: Stop strings and biases are looked at again in every step, beside all other answers.
MOST_STOPS = 16
LONGEST_STOP = 256
MOST_BIASES = 1024
#: Characters of a grammar or schema at most.
LONGEST_GRAMMAR = 64 * 1024
# The bytes of a token.
PieceOf = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer that is asked for; `n_top` likeliest symbols are told with each, if not None."""

    prompt: Prompt
    sampling: Sampling
    n_top: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A request, with `request.n` answers to each of the prompts.

    Where `scored` nothing is written: the prompt alone is echoed. `weights` weighs the members
    otherwise than the ensemble does.
    """

    request: shapes.AnyRequest
    prompts: tuple[AnyPrompt, ...]
    sampling: Sampling
    scored: bool = False
    weights: Weights | None = None

    @property
    def n_answers(self) -> int:
        """How many answers are asked for."""
        return len(self.prompts) * self.request.n


def read_body(body: Values, endpoint: str, defaults: Sampling) -> Asked:
    """Read the body of a request; raise InputError where it asks for what cannot be done."""
    for key in _SERVED:
        refuse_undone(key, body.get(key))
    request, sampling = read_request(body, endpoint, defaults)
    if request.logit_bias:
        raise InputError("logit_bias names tokens by number, which differ from model to model")
    if isinstance(request, shapes.ChatRequest):
        return Asked(conversation(request.messages), sampling, request.n_top)
    prompt, *more = texts_of(request.prompt, "prompt")
    if more or not isinstance(prompt, str):
        raise InputError("prompt must be one text")
    return Asked(prompt, sampling, request.n_top)


def read_call(
    body: Values, endpoint: str, defaults: Sampling, *, piece_of: PieceOf, members: Sequence[str]
) -> Call:
    """Read the body of a call; `piece_of` gives a token's bytes. Raises InputError."""
    body = said(body)
    if endpoint == CHAT and body.get("echo"):
        raise InputError("echo: a conversation is not repeated; leave it out")
    scored = body.get("echo") is True and body.get("max_tokens") == 0
    if scored:
        del body["max_tokens"]
    request, sampling = read_request(body, endpoint, defaults)
    if request.logit_bias is not None:
        sampling = replace(sampling, logit_bias=_text_biases(request.logit_bias, piece_of))
    _refuse_too_much(sampling)
    if request.stream_options is not None and not request.stream:
        raise InputError("stream_options needs stream true")
    prompts: tuple[AnyPrompt, ...]
    if isinstance(request, shapes.ChatRequest):
        prompts = (conversation(request.messages),)
    else:
        prompts = texts_of(request.prompt, "prompt")
    weights = weights_of(request.weights, members)
    call = Call(request, prompts, sampling, scored, weights)
    if call.n_answers > (most := shapes.MOST_ANSWERS):
        raise InputError(f"n: {call.n_answers} answers are asked for, and {most} can be")
    return call


def texts_of(
    value: str | Sequence[int | str | Sequence[int]], key: str
) -> tuple[str | tuple[int, ...], ...]:
    """Return texts and lists of token ids: one of them where `value` is one."""
    if isinstance(value, str):
        return (value,)
    ids = tuple(each for each in value if isinstance(each, int))
    texts = [each for each in value if not isinstance(each, int)]
    if not texts:
        return (ids,)
    if ids:
        raise ReadError(key, f"must be {shapes.SEVERAL}, not {shown(value)}")
    return tuple(each if isinstance(each, str) else tuple(each) for each in texts)


def weights_of(value: Weights | dict[str, float] | None, members: Sequence[str]) -> Weights | None:
    """Return what each member is to count; raise InputError for what is no weights of theirs."""
    if value is None or isinstance(value, str):
        return value
    weights = value
    if isinstance(value, dict) and value.keys() == set(members):
        weights = tuple(value[name] for name in members)
    if isinstance(weights, dict) or len(weights) != len(members) or not 0 < sum(weights) < math.inf:
        given, names = list(value) if isinstance(value, tuple) else value, ", ".join(members)
        raise InputError(f"weights must be {shapes.WEIGHTS} of {names}; not {shown(given)}")
    return weights


def _text_biases(biases: shapes.Biases, piece_of: PieceOf) -> shapes.Biases:
    found: shapes.Biases = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InputError(f"logit_bias {shown(key)} is no token id (see /tokenize)")
        try:
            text = piece_of(int(key)).decode()
        except (InputError, UnicodeDecodeError):
            text = ""
        if not text:
            raise InputError(f"logit_bias {key}: no token, or one that is no whole text of its own")
        if text in found:
            raise InputError(f"logit_bias {key}: {shown(text)} has a bias already: give one")
        found[text] = bias
    return found


def _refuse_too_much(sampling: Sampling) -> None:
    if len(sampling.stop) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in sampling.stop):
        most = f"at most {MOST_STOPS} texts of {LONGEST_STOP} characters"
        raise InputError(f"stop: {most} can be looked for")
    if len(sampling.logit_bias) > MOST_BIASES:
        raise InputError(f"logit_bias: at most {MOST_BIASES} tokens can be biased")
    for key in ("grammar", "json_schema", "chat_template"):
        if len(getattr(sampling, key) or "") > LONGEST_GRAMMAR:
            raise InputError(f"{key}: at most {LONGEST_GRAMMAR} characters can be obeyed")
    if len(json.dumps(to_builtins(sampling.tools))) > LONGEST_GRAMMAR:
        raise InputError(f"tools: at most {LONGEST_GRAMMAR} characters can be obeyed")


def read_request(
    body: Values, endpoint: str, defaults: Sampling
) -> tuple[shapes.AnyRequest, Sampling]:
    """Read a body, and how its answers are drawn but for biases; raise InputError."""
    values = said(body)
    kind = _KINDS[endpoint]
    messages = values.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    is_open = isinstance(last, dict) and last.get("role") == "assistant"
    goes_on: Values = _TABLES["goes_on"] if is_open else {}
    for key, value in values.items():
        if key not in KEYS:
            raise UnknownKeyError(key, KEYS)
        if key in _REFUSED:
            refuse_undone(key, None if goes_on.get(key) is value else value)
        elif value and key not in (*kind.__struct_encode_fields__, *OPTIONS, *IGNORED):
            raise InputError(f"{key} is nothing that {endpoint} knows; leave it out")
    request = _own(values, kind)
    if isinstance(request, shapes.ChatRequest) and request.top_logprobs and not request.logprobs:
        raise ReadError("top_logprobs", "needs logprobs true")
    values.pop("logit_bias", None)
    sampling = _drawn(values, request, defaults, told=kind is shapes.ChatRequest)
    return request, sampling


def said(body: Values) -> dict[str, object]:
    """Return what a body says, by our names; raise InputError for contradictory or half text."""
    values = given(body)
    for key, value in values.items():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            name = key.encode("ascii", "backslashreplace").decode()
            # A row is called what it likes.
            if key != "id":
                raise InputError(f"{name}: half a surrogate pair is no text") from error
    for alias, name in ALIASES.items():
        if alias in values and values.setdefault(name, values[alias]) != values.pop(alias):
            raise InputError(f"{alias} and {name} mean the same here, and differ: give one")
    if isinstance(stop := values.get("stop"), list):
        values["stop"] = [each for each in stop if each != ""]
    if values.get("top_k") == -1:
        values["top_k"] = 0
    return {key: value for key, value in values.items() if _TABLES["defaults"].get(key) != value}


def read_options(values: Values, defaults: Sampling, *, told: bool = True) -> Sampling:
    """Put the options of sampling among `values` in place of the defaults; raise InputError.

    `told` says whether they go with messages, or else with a text to be gone on with.
    """
    values = said(values)
    return _drawn(values, _own(values, shapes.Options), defaults, told=told)


def _own(values: Values, kind: type[Known]) -> Known:
    known = {key: values[key] for key in kind.__struct_encode_fields__ if key in values}
    return read(lean(known, kind), kind)


def _drawn(values: Values, own: shapes.Options, defaults: Sampling, *, told: bool) -> Sampling:
    changed: dict[str, Any] = {key: values[key] for key in OPTIONS if key in values}
    for key, kind in _CALLS.items():
        if key in changed:
            changed[key] = lean(changed[key], kind)
    changed |= _thought(own, defaults, told=told, has_template="chat_template" in changed)
    if isinstance(own.json_schema, dict):
        changed["json_schema"] = json.dumps(own.json_schema)
    # Of grammar and json_schema only one can be obeyed: what is asked for wins.
    rules = [key for key in ("grammar", "json_schema") if key in changed]
    if rules and own.response_format is not None:
        raise InputError(f"{rules[0]} and response_format exclude each other: give one")
    if rules or own.response_format is not None:
        # Plain text is asked for, too: no grammar or schema of the defaults is to be obeyed.
        changed = {"grammar": None, "json_schema": None, **changed}
    if isinstance(own.response_format, shapes.ObjectFormat):
        changed["json_schema"] = json.dumps(own.response_format.schema or {"type": "object"})
    elif isinstance(own.response_format, shapes.SchemaFormat):
        changed["json_schema"] = json.dumps(own.response_format.json_schema.schema)
    return replace(defaults, **changed) if changed else defaults


def _thought(
    own: shapes.Options, defaults: Sampling, *, told: bool, has_template: bool
) -> dict[str, Any]:
    """Return whether and how members think; raise InputError for what contradicts itself."""
    given, effort = dict(own.chat_template_kwargs), own.reasoning_effort
    says: dict[str, object] = {"enable_thinking": own.enable_thinking}
    says["reasoning_effort"] = effort and effort != "none"
    says |= {f"chat_template_kwargs.{name}": given.get(name) for name in _SWITCHES}
    modes: dict[str, Thinking] = {} if own.thinking is None else {"thinking": own.thinking}
    how: Thinking = "apart" if (own.thinking or defaults.thinking) == "apart" else "on"
    modes |= {name: how if on else "off" for name, on in says.items() if isinstance(on, bool)}
    if len(set(modes.values())) > 1:
        raise InputError(f"{' and '.join(modes)} contradict each other: give one")
    asking = ["chat_template"] if has_template else []
    asking += [k for k, m in modes.items() if m == "on" or (m == "apart" and k != "thinking")]
    asking += ["chat_template_kwargs"] if given.keys() - _SWITCHES else []
    if asking and not told:
        why = "a text that is gone on with has no chat template, and no thought; leave it out"
        raise InputError(f"{asking[0]} is for messages: {why}")
    if effort is not None and given.setdefault("reasoning_effort", effort) != effort:
        raise InputError("reasoning_effort and that of chat_template_kwargs differ: give one")
    if effort == "none":
        del given["reasoning_effort"]
    dropped = (*(_SWITCHES if modes else ()), effort and "reasoning_effort")
    kept = {k: v for k, v in defaults.chat_template_kwargs.items() if k not in dropped}
    thinking = next(iter(modes.values()), defaults.thinking)
    return {"thinking": thinking, "chat_template_kwargs": {**kept, **given}}


@lru_cache(maxsize=1024)
def misspelled(key: str, known: tuple[str, ...]) -> str | None:
    """Return the known key that was probably meant by one that is not known, in any case."""
    return next(iter(difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.85)), None)


def refuse_undone(key: str, value: object) -> None:
    """Raise InputError for what cannot be done, unless it asks for nothing."""
    nothing = _ASKS_NOTHING.get(key)
    # True is 1 for Python.
    is_other = isinstance(value, bool) != isinstance(nothing, bool) or value != nothing
    if value is not None and is_other:
        raise InputError(f"{key} {shown(value)} is not supported here; leave it out")


def given(body: Values) -> dict[str, object]:
    """Return what a body says: null says nothing."""
    return {key: value for key, value in body.items() if value is not None}


def in_chat(body: Values, kind: type[Any]) -> Values:
    """Return the body of a chat for one that is partly of a `kind`, whose `chat()` tells it."""
    own = kind.__struct_fields__
    chat = given(read({key: body[key] for key in own if key in body}, kind).chat())
    others = {key: value for key, value in body.items() if key not in own}
    for key in chat.keys() & others.keys():
        raise InputError(f"{key} is said in other words here; leave it out")
    return {**others, **chat}


def parsed(
    text: str, parse_constant: Callable[[str], object] | None = None
) -> tuple[object, list[str]]:
    """Return a value of JSON, and the keys that come twice; raise ValueError or RecursionError."""
    twice: list[str] = []

    def noted(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
            twice.append(key)
        return values

    return json.loads(text, object_pairs_hook=noted, parse_constant=parse_constant), twice


def refuse_twice(keys: Sequence[str]) -> None:
    """Raise InputError where there are keys that come twice."""
    if keys:
        raise InputError(f"has the key {shown(keys[0])} twice: give it once")
