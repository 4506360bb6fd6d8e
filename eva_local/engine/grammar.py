"""What an answer may be: a grammar in GBNF, a JSON schema, calls of functions; piece by piece.

llguidance does the work, on the bytes of the shared space's symbols, so that any space will
do. The only module that imports it, and only when an answer is constrained.
"""

import functools
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eva_local.engine.gbnf import OPTIONS, read_gbnf
from eva_local.errors import InputError, passed_on
from eva_local.fusion.votes import Marks
from eva_local.reading import did_you_mean
from eva_local.spaces.base import Space
from eva_local.types import Sampling, Tool

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: What stands before and behind a call of a function.
BEGIN, END = "<tool_call>", "</tool_call>"
_LONGEST_MESSAGE = 200
# Grammars and schemas that are kept ready for the next answer.
_KEPT = 32
# llguidance goes down by recursion, and where the stack has no room for that the process ends: so
# much is enough for a grammar or schema of so many characters.
_LONGEST, _STACK = 1 << 18, 1 << 28
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of functions, by names and JSON schemas of their arguments, as an answer may have them.

    One that is `due` is all of the answer, without marks. Else the answer is free up to the mark
    that begins a call, and ends with the call, or `several`; it obeys a schema, if there is one, as
    long as it calls nothing.
    """

    functions: tuple[tuple[str, str], ...]
    due: bool = False
    several: bool = True


def calls_of(sampling: Sampling) -> Calls | None:
    """Return what calls an answer may have, or must be, if any; raise InputError."""
    choice, tools = sampling.tool_choice, sampling.tools
    if choice == "none" or (choice == "auto" and not tools):
        return None
    if isinstance(choice, Tool):
        name, names = choice.function.name, [tool.function.name for tool in tools]
        if name not in names:
            hint = did_you_mean(name, names)
            raise InputError(f"tool_choice: {name} is none of the tools; {hint}")
        tools = tuple(tool for tool in tools if tool.function.name == name)
    if not tools:
        raise InputError("tool_choice: there are no tools to choose from")
    for name, n in Counter(tool.function.name for tool in tools).items():
        if n > 1:
            raise InputError(f"tools: {name} is there {n} times: nobody could tell which is called")
    functions = []
    for tool in tools:
        schema = {"type": "object", **tool.function.parameters}
        if schema["type"] != "object":
            raise InputError(f"tools: the parameters of {tool.function.name} must be an object")
        functions.append((tool.function.name, json.dumps(schema)))
    return Calls(tuple(functions), choice != "auto", several=sampling.parallel_tool_calls)


class Grammar:
    """The constraint of one answer, followed by llguidance: what may come next, symbol by symbol.

    `allowed: (symbols,)` marks which symbols, END among them, may come next; never none:
    InputError is raised where nothing can follow.
    """

    def __init__(self, matcher: "LLMatcher", end: int, allowed: Marks | None = None) -> None:
        self._matcher = matcher
        self._end = end
        self.allowed = self._mask() if allowed is None else allowed

    @property
    def complete(self) -> bool:
        """Whether nothing but END may follow."""
        return bool(self.allowed[self._end]) and np.count_nonzero(self.allowed) == 1

    def fork(self) -> "Grammar":
        """Return one that stands where this one does and goes on by itself."""
        return Grammar(self._matcher.deep_copy(), self._end, self.allowed)

    def admits(self, symbols: Sequence[int]) -> bool:
        """Return whether the text may go on with these symbols, one after the other."""
        return bool(self._matcher.validate_tokens(list(symbols)) == len(symbols))

    def forces(self, symbols: Sequence[int]) -> bool:
        """Return whether the text can go on with these symbols only, one after the other."""
        ahead = self
        for symbol in symbols:
            if not ahead.allowed[symbol] or np.count_nonzero(ahead.allowed) > 1:
                return False
            if ahead is self:
                ahead = self.fork()
            ahead.accept([symbol])
        return True

    def accept(self, symbols: Sequence[int]) -> None:
        """Follow chosen symbols, none for END; raise InputError where nothing can follow."""
        if symbols:
            self._matcher.consume_tokens(list(symbols))
            self.allowed = self._mask()

    def _mask(self) -> Marks:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        marks = np.unpackbits(bits, count=self._end + 1, bitorder="little")
        problem = self._matcher.get_error()
        if "NoExtension" in problem:
            raise InputError("the grammar asks for text that the models cannot write")
        if problem:
            raise _error("the grammar cannot be followed any further", problem)
        return marks.view(np.bool_)


class Grammars:
    """Makes the grammars of one shared space; symbols with a byte of `missing` are not allowed."""

    def __init__(self, space: Space[Any], missing: frozenset[int] = frozenset()) -> None:
        self._space = space
        self._missing = missing
        self._one_at_a_time = threading.Lock()
        self._beginning = functools.lru_cache(_KEPT)(self._compile)

    def open(self, sampling: Sampling) -> Grammar | None:
        """Return a fresh grammar for one answer, or None where it is free; slow if it is new."""
        calls = calls_of(sampling)
        rules = (None, None) if calls and calls.due else (sampling.grammar, sampling.json_schema)
        if rules == (None, None) and calls is None:
            return None
        return self._beginning(*rules, calls).fork()

    def _compile(self, gbnf: str | None, schema: str | None, calls: Calls | None) -> Grammar:
        with self._one_at_a_time:
            tokenizer = self._tokenizer
        return _followed(tokenizer, gbnf, schema, calls)

    @functools.cached_property
    def _tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer

        space, end, missing = self._space, self._space.end, self._missing
        pieces = [space.piece(symbol) if space.is_text(symbol) else b"" for symbol in range(end)]
        spelled = [piece if missing.isdisjoint(piece) else b"" for piece in pieces]
        described = _Described([*spelled, b""], end)
        # Slices made no mask faster that was measured, and take time to prepare.
        tokenizer = LLTokenizer(described, slices=[])  # type: ignore[arg-type]  # by its attributes
        described.split = tokenizer.greedy_tokenize
        return tokenizer


def check(sampling: Sampling) -> None:
    """Raise InputError where the grammar or schema cannot be used, before a model is opened."""
    if sampling.grammar is not None or sampling.json_schema is not None:
        from llguidance import LLTokenizer

        _followed(LLTokenizer("byte"), sampling.grammar, sampling.json_schema)


class _Described:
    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.split: Callable[[str], list[int]] = lambda _text: []

    def __call__(self, text: str) -> list[int]:
        return self.split(text)


def _followed(
    tokenizer: "LLTokenizer", gbnf: str | None, schema: str | None, calls: Calls | None = None
) -> Grammar:
    from llguidance import LLMatcher, LLParserLimits

    name = "grammar" if gbnf is not None else "json_schema" if calls is None else "tools"
    limits = LLParserLimits(verbose_errors=False)
    try:
        matcher = _with_room(
            lambda: LLMatcher(tokenizer, _compiled(gbnf, schema, calls), log_level=0, limits=limits)
        )
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return Grammar(matcher, tokenizer.eos_token)
    except ValueError as error:
        raise _error(name, str(error)) from error
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


@functools.lru_cache(_KEPT)
def _compiled(gbnf: str | None, schema: str | None, calls: Calls | None) -> str:
    """Return the grammar as llguidance reads it; raise ValueError."""
    if len(gbnf or schema or "") > _LONGEST:
        raise ValueError(f"more than {_LONGEST} characters")
    if gbnf is not None:
        return read_gbnf(gbnf)
    parts = [] if schema is None else [_part("answer", schema)]
    rules = "start: @answer" if calls is None else _rules(calls, "@answer" if parts else "")
    for number, (_, arguments) in enumerate(calls.functions if calls else ()):
        parts.append(_part(f"arguments_{number}", arguments))
    return json.dumps({"grammars": [{"lark_grammar": f"{OPTIONS}\n{rules}"}, *parts]})


def _part(name: str, schema: str) -> dict[str, Any]:
    """Return the part of a grammar that obeys a schema; raise ValueError."""
    from llguidance import LLMatcher

    # As json.dumps writes it: free whitespace would let a small model write nothing else.
    form: Any = {"item_separator": ", ", "key_separator": ": "}
    form |= {"whitespace_flexible": False, "lenient": False}
    compiled = json.loads(LLMatcher.grammar_from_json_schema(schema, overrides=form))
    return {**compiled["grammars"][0], "name": name}


def _rules(calls: Calls, answer: str) -> str:
    """Return what an answer with calls may be, in Lark."""
    heads = [f'{{"name": {json.dumps(name)}, "arguments": ' for name, _ in calls.functions]
    ways = [f'{json.dumps(head)} @arguments_{n} "}}"' for n, head in enumerate(heads)]
    more = rf'("\n{BEGIN}" marked)*' if calls.several else ""
    rules = [
        f"call: {' | '.join(ways)}",
        "start: call" if calls.due else f"start: {answer or 'TEXT'} | lead marked {more}",
        rf'marked: "\n" call "\n{END}"',
        rf"TEXT: /(.|\n)*/ & ~/(.|\n)*{BEGIN}(.|\n)*/",
        # Lazy, it ends at the first mark.
        f'lead: "{BEGIN}"' if answer else rf'lead[lazy]: /(.|\n)*/ "{BEGIN}"',
    ]
    return "\n".join(rules)


def _with_room(make: "Callable[[], LLMatcher]") -> "LLMatcher":
    """Return what `make` does, in a thread with a large stack."""
    with ThreadPoolExecutor(1) as thread:
        with _ONE_AT_A_TIME:
            before = threading.stack_size(_STACK)
            try:
                made = thread.submit(make)
            except RuntimeError as error:
                raise passed_on(error) from error
            finally:
                threading.stack_size(before)
        return made.result()


def _error(what: str, reason: str) -> InputError:
    line = " ".join(reason.replace("<non-verbose/>", "").split())
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[:_LONGEST_MESSAGE]} …"
    return InputError(f"{what}: {line or 'no reason given'}")
