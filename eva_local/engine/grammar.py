"""What an answer may be: a grammar in GBNF, or a JSON schema, checked piece by piece.

llguidance does the work, on the bytes of the shared space's symbols, so that any space will
do. The only module that imports it, and only when an answer is constrained.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eva_local.engine.endless import shape_of_parts, shape_of_rules
from eva_local.errors import InputError
from eva_local.fusion.votes import Marks
from eva_local.spaces.base import Space
from eva_local.types import Sampling

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


_LONGEST_MESSAGE = 200
# Grammars and schemas that are kept ready for the next answer.
_KEPT = 32
# llguidance goes down by recursion, and at twice as many the process ends.
_DEEPEST = 1000
# Otherwise a mask would admit one spelling only of what is forced.
_OPTIONS = '%llguidance {"no_forcing": true}'
# A comment, a literal, a regular expression, a name.
_LARK_TOKEN = re.compile(r'//[^\n]*|"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])+/|\w+')
# A comment, a literal, a class of characters, a name.
_GBNF_TOKEN = re.compile(r'#[^\n]*|"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z][\w-]*')
# A character of a class, escaped or not, and what some of them mean beside each other in Rust.
_CLASS_UNIT = re.compile(r"\\x..|\\.|[^\\]", re.DOTALL)
_OPERATORS = {"&": r"\x26", "-": r"\x2d", "~": r"\x7e"}


class Grammar:
    """The constraint of one answer, followed by llguidance: what may come next, symbol by symbol.

    `allowed: (symbols,)` marks which symbols, END among them, may come next; never none.
    """

    def __init__(self, matcher: LLMatcher, end: int, allowed: Marks | None = None) -> None:
        """Stand where `matcher` does; raise InputError where nothing can follow."""
        self._matcher = matcher
        self._end = end
        self.allowed = self._mask() if allowed is None else allowed

    @property
    def complete(self) -> bool:
        """Whether nothing but END may follow."""
        return bool(self.allowed[self._end]) and np.count_nonzero(self.allowed) == 1

    def fork(self) -> Grammar:
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
        """Follow chosen symbols, none for END.

        Raises InputError where one is forbidden or nothing can follow.
        """
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
    """Makes the grammars of one shared space, whose symbols are prepared once."""

    def __init__(self, space: Space[Any], missing: frozenset[int] = frozenset()) -> None:
        """Constrain answers in `space`; symbols with a byte of `missing` are never allowed."""
        self._space = space
        self._missing = missing
        self._one_at_a_time = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._beginning = functools.lru_cache(_KEPT)(self._compile)

    def open(self, sampling: Sampling) -> Grammar | None:
        """Return a fresh grammar for one answer, or None where it is free.

        Slow where this grammar or schema was not asked for lately. Raises InputError where it
        cannot be used.
        """
        if sampling.grammar is None and sampling.json_schema is None:
            return None
        return self._beginning(sampling.grammar, sampling.json_schema).fork()

    def _compile(self, gbnf: str | None, schema: str | None) -> Grammar:
        with self._one_at_a_time:
            if self._tokenizer is None:
                self._tokenizer = self._prepared()
        return _followed(self._tokenizer, gbnf, schema, self._space.end)

    def _prepared(self) -> LLTokenizer:
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

        tokenizer = LLTokenizer("byte")
        _followed(tokenizer, sampling.grammar, sampling.json_schema, tokenizer.eos_token)


class _Described:
    """Symbols, as llguidance wants a tokeniser to be described."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.split: Callable[[str], list[int]] = lambda _text: []

    def __call__(self, text: str) -> list[int]:
        return self.split(text)


def _followed(tokenizer: LLTokenizer, gbnf: str | None, schema: str | None, end: int) -> Grammar:
    """Return a grammar at its beginning; raise InputError where it cannot be used."""
    from llguidance import LLMatcher, LLParserLimits

    name = "json_schema" if gbnf is None else "grammar"
    matcher = LLMatcher(
        tokenizer,
        _compiled(name, gbnf or schema or ""),
        log_level=0,
        limits=LLParserLimits(verbose_errors=False),
    )
    if matcher.is_error():
        raise _error(name, matcher.get_error())
    try:
        return Grammar(matcher, end)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


@functools.lru_cache(_KEPT)
def _compiled(name: str, text: str) -> str:
    """Return a constraint in llguidance's own form, not yet checked in full."""
    from llguidance import LLMatcher

    try:
        if name == "grammar":
            compiled = LLMatcher.grammar_from_lark(_lark(text))
            shape, what = shape_of_rules(text), "rule"
        else:
            # As json.dumps writes it: free whitespace would let a small model write nothing else.
            compiled = LLMatcher.grammar_from_json_schema(
                text,
                overrides={
                    "whitespace_flexible": False,
                    "item_separator": ", ",
                    "key_separator": ": ",
                    "lenient": False,
                },
            )
            options = json.dumps(f"{_OPTIONS}\nstart: @json_schema")
            compiled = compiled.replace("[", f'[{{"lark_grammar": {options}}}, ', 1)
            shape, what = shape_of_parts(text, _matches), "part"
    except ValueError as error:
        raise _error(name, str(error)) from error
    if shape.endless is not None:
        problem = f"no text completes the {what} {shape.endless}"
        raise _error(name, f"{problem}: what it needs always needs itself again")
    if shape.depth > _DEEPEST:
        problem = f"{shape.depth} {what}s lead from one to the next, over {_DEEPEST}"
        raise _error(name, f"{problem}: flatten it")
    return compiled


def _matches(pattern: str, name: str) -> bool:
    """Return whether a schema's pattern matches a name, in llguidance's time: it never retries."""
    tokenizer, matcher = _matcher_of(pattern)
    spelled = tokenizer.tokenize_str(json.dumps(name, ensure_ascii=False))
    matcher = matcher.deep_copy()
    return bool(matcher.consume_tokens(spelled)) and matcher.is_accepting()


@functools.lru_cache(_KEPT)
def _matcher_of(pattern: str) -> tuple[LLTokenizer, LLMatcher]:
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer("byte")
    schema = json.dumps({"type": "string", "pattern": pattern})
    return tokenizer, LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema), log_level=0)


def _lark(gbnf: str) -> str:
    """Return llguidance's translation of GBNF, with characters as its only terminals.

    llguidance takes the longest terminal, which GBNF does not know: of a word before a comma
    and a word after it, a terminal for words would leave nothing for the second.
    Raises ValueError.
    """
    from llguidance import grammar_from

    plain = _GBNF_TOKEN.sub(_without_operators, _without_escapes(gbnf))
    translated = grammar_from("gbnf", _told_apart(plain))
    return _LARK_TOKEN.sub(_by_character, translated).replace("%llguidance {}", _OPTIONS, 1)


def _without_operators(match: re.Match[str]) -> str:
    """Escape in a class of characters what would be an operator between classes: && -- ~~."""
    token = match[0]
    if not token.startswith("["):
        return token
    start = 2 if token.startswith("[^") else 1
    units = _CLASS_UNIT.findall(token[start:-1])
    written, at = token[:start], 0
    while at < len(units):
        is_range = at + 2 < len(units) and units[at + 1] == "-"
        ends = units[at : at + 3 : 2] if is_range else units[at : at + 1]
        written += "-".join(_OPERATORS.get(unit, unit) for unit in ends)
        at += 3 if is_range else 1
    return f"{written}]"


def _told_apart(gbnf: str) -> str:
    """Rename rules that are one in Lark, which has no case and no hyphens, or are its `start`."""
    names = {"root": "root"}
    taken = {"root", "start"}

    def named(match: re.Match[str]) -> str:
        name = match[0]
        if not name[0].isalpha():
            return name
        if name not in names:
            other, count = name, 1
            while _folded(other) in taken:
                other, count = f"{name}-{count + 1}", count + 1
            names[name] = other
            taken.add(_folded(other))
        return names[name]

    return _GBNF_TOKEN.sub(named, gbnf)


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def _by_character(match: re.Match[str]) -> str:
    """Rewrite a token of Lark: a literal as its characters, a terminal's name as a rule's."""
    token = match[0]
    if token.startswith('"'):
        characters = re.findall(r"\\x..|\\.|[^\\]", token[1:-1])
        return "({})".format(" ".join(f'"{character}"' for character in characters) or '""')
    if token == "/./":
        return "/(?s:.)/"
    return f"{token.lower()}__t" if token[0].isupper() else token


def _without_escapes(gbnf: str) -> str:
    r"""Write \u and \U escapes as the characters they mean: llguidance reads them wrongly."""

    def character(match: re.Match[str]) -> str:
        digits = match[1] or match[2]
        code = int(digits, 16) if digits else 0
        if not digits or code > 0x10FFFF or 0xD800 <= code < 0xE000:
            return match[0]
        return chr(code) if code >= 0x80 else f"\\x{code:02x}"

    # An escaped backslash is passed over, so that what follows it is not taken for an escape.
    return re.sub(r"\\\\|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})", character, gbnf)


def _error(what: str, reason: str) -> InputError:
    """Word an error in one line: llguidance's own have many."""
    line = " ".join(reason.replace("<non-verbose/>", "").split())
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[:_LONGEST_MESSAGE]} …"
    return InputError(f"{what}: {line or 'no reason given'}")
