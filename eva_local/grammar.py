"""What an answer may be: a grammar in GBNF, or a JSON schema, checked symbol by symbol.

llguidance does the work, on the bytes of the shared space's symbols, so that any space will
do. The only module that imports it, and only when an answer is constrained.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from eva_local.errors import InputError
from eva_local.records import Sampling

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LONGEST_MESSAGE = 200
# A comment, a literal, a regular expression, a name.
_LARK_TOKEN = re.compile(r'//[^\n]*|"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])+/|\w+')
# A comment, a literal, a class of characters, a name.
_GBNF_TOKEN = re.compile(r'#[^\n]*|"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z][\w-]*')


class Symbols(Protocol):
    """What is needed of a shared space: ids up to `end`, which is END, and their bytes."""

    end: int

    def piece(self, symbol: int) -> bytes:
        """Return the bytes of a symbol; END has none."""

    def is_text(self, symbol: int) -> bool:
        """Return whether there is such a symbol and it stands for text: no END, no control."""


class Grammar(Protocol):
    """The constraint of one answer, which follows the symbols that are chosen."""

    @property
    def complete(self) -> bool:
        """Whether nothing but END may follow."""

    def allows(self, symbols: Sequence[int]) -> NDArray[np.bool_]:
        """Return (m,): which of the symbols, END among them, may come next."""

    def ways_on(self) -> list[int]:
        """Return symbols that may come next, the one that commits to least first.

        What the grammar forces is there as its longest symbols only. Empty at a dead end.
        """

    def accept(self, symbol: int) -> None:
        """Follow a chosen symbol. Raises InputError where the grammar forbids it."""


class Grammars:
    """Makes the grammars of one shared space, whose symbols are prepared once."""

    def __init__(self, symbols: Symbols, missing: frozenset[int] = frozenset()) -> None:
        """Constrain answers in `symbols`; those with a byte of `missing` are never allowed."""
        self._symbols = symbols
        self._missing = missing
        self._tokenizer: LLTokenizer | None = None

    def open(self, sampling: Sampling) -> Grammar | None:
        """Return a fresh grammar for one answer, or None where it is free.

        Raises InputError where the grammar or schema cannot be used.
        """
        compiled = _compiled(sampling)
        if compiled is None:
            return None
        if self._tokenizer is None:
            self._tokenizer = self._prepared()
        matcher = _matcher(self._tokenizer, compiled, _name(sampling))
        return _Followed(matcher, self._symbols)

    def _prepared(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        symbols, end, missing = self._symbols, self._symbols.end, self._missing
        pieces = [
            symbols.piece(symbol) if symbols.is_text(symbol) else b"" for symbol in range(end)
        ]
        spelled = [piece if missing.isdisjoint(piece) else b"" for piece in pieces]
        described = _Described([*spelled, b""], end)
        # Slices would speed up masks, which are needed only where all candidates are refused.
        tokenizer = LLTokenizer(described, slices=[])  # type: ignore[arg-type]  # by its attributes
        described.split = tokenizer.greedy_tokenize
        return tokenizer


def check(sampling: Sampling) -> None:
    """Raise InputError where the grammar or schema cannot be used, before a model is opened."""
    compiled = _compiled(sampling)
    if compiled is not None:
        from llguidance import LLTokenizer

        _matcher(LLTokenizer("byte"), compiled, _name(sampling))


class _Followed:
    """A grammar that llguidance follows."""

    def __init__(self, matcher: LLMatcher, symbols: Symbols) -> None:
        self._matcher = matcher
        self._symbols = symbols

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped() and self._matcher.is_accepting()

    def allows(self, symbols: Sequence[int]) -> NDArray[np.bool_]:
        # llguidance's mask would admit one spelling only of what the grammar forces.
        matcher, end = self._matcher, self._symbols.end
        allowed = [
            matcher.is_accepting() if symbol == end else matcher.validate_tokens([symbol]) == 1
            for symbol in symbols
        ]
        if matcher.is_error():
            raise _error("the grammar cannot be followed any further", matcher.get_error())
        return np.asarray(allowed, dtype=np.bool_)

    def ways_on(self) -> list[int]:
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        marked = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        ways = marked[marked < self._symbols.end].tolist()
        # Of equal pieces, byte-fallback tokens come first in a vocabulary: take the other one.
        ways.sort(key=lambda symbol: (len(self._symbols.piece(symbol)), -symbol))
        return [way for way, allowed in zip(ways, self.allows(ways), strict=True) if allowed]

    def accept(self, symbol: int) -> None:
        if symbol != self._symbols.end and not self._matcher.consume_token(symbol):
            raise _error("the grammar cannot be followed any further", self._matcher.get_error())


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


def _compiled(sampling: Sampling) -> str | None:
    """Return the constraint in llguidance's own form, not yet checked in full."""
    if sampling.grammar is None and sampling.json_schema is None:
        return None
    from llguidance import LLMatcher

    try:
        if sampling.grammar is not None:
            return LLMatcher.grammar_from_lark(_lark(sampling.grammar))
        assert sampling.json_schema is not None
        # As json.dumps writes it: free whitespace would let a small model write nothing else.
        return LLMatcher.grammar_from_json_schema(
            sampling.json_schema,
            overrides={
                "whitespace_flexible": False,
                "item_separator": ", ",
                "key_separator": ": ",
                "lenient": False,
            },
        )
    except ValueError as error:
        raise _error(_name(sampling), str(error)) from error


def _matcher(tokenizer: LLTokenizer, compiled: str, name: str) -> LLMatcher:
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, compiled, log_level=0)
    if matcher.is_error():
        raise _error(name, matcher.get_error())
    return matcher


def _lark(gbnf: str) -> str:
    """Return llguidance's translation of GBNF, with characters as its only terminals.

    llguidance takes the longest terminal, which GBNF does not know: of a word before a comma
    and a word after it, a terminal for words would leave nothing for the second.
    Raises ValueError.
    """
    from llguidance import grammar_from

    translated = grammar_from("gbnf", _told_apart(_without_escapes(gbnf)))
    return _LARK_TOKEN.sub(_by_character, translated)


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


def _name(sampling: Sampling) -> str:
    return "json_schema" if sampling.grammar is None else "grammar"


def _error(what: str, reason: str) -> InputError:
    """Word an error in one line: llguidance's own have many, with a dump of the grammar."""
    line = " ".join(reason.split())
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[:_LONGEST_MESSAGE]} …"
    return InputError(f"{what}: {line or 'no reason given'}")
