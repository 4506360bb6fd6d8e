"""A grammar in GBNF -> the same in llguidance's own language.

llguidance's own translation takes words for terminals, of which it follows the longest: of a word
before a comma and a word after it, nothing would be left for the second. Here characters are the
only terminals.
"""

import json
import re

_TOKEN = re.compile(
    r"\s+|#[^\n]*"
    r'|(?P<text>"(?:\\.|[^"\\])*")|(?P<members>\[(?:\\.|[^\]\\])*\])|(?P<any>\.)'
    r"|(?P<rule>[\w-]+)[ \t]*::=|(?P<name>[\w-]+)|(?P<open>\()|(?P<close>\))|(?P<or>\|)"
    r"|(?P<times>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})|(?P<end>\Z)|(?P<wrong>.)",
    re.DOTALL,
)
_HEX = "[0-9a-fA-F]"
_UNIT = re.compile(rf"\\x{_HEX}{{2}}|\\u{_HEX}{{4}}|\\U{_HEX}{{8}}|\\.|[^\\]", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", **{each: each for each in '"\\[]'}}
# Otherwise a mask would admit one spelling only of what is forced.
OPTIONS = '%llguidance {"no_forcing": true}'


def read_gbnf(gbnf: str) -> str:
    """Return a grammar in Lark; raise ValueError."""
    reader = _Reader()
    for match in _TOKEN.finditer(gbnf):
        if match.lastgroup is not None:
            reader.take(match, match.lastgroup)
    for name in reader.names:
        if name not in reader.rules:
            raise ValueError(f"there is no rule {name}")
    rules = [f"{name}: {reader.rules[each]}" for each, name in reader.names.items()]
    return "\n".join([OPTIONS, *rules])


class _Reader:
    def __init__(self) -> None:
        self.names = {"root": "start"}
        self.rules: dict[str, str] = {}
        self._head = ""
        # Of the rule, and of its groups that are open, the ways: each a row of terms.
        self._groups: list[list[list[str]]] = []

    def take(self, match: re.Match[str], kind: str) -> None:
        token = match[0]
        if kind in ("rule", "end"):
            self._begin(match["rule"])
        elif not self._groups or kind == "wrong" or (kind == "close" and len(self._groups) == 1):
            before = match.string[: match.start()][-20:]
            raise ValueError(f"{token!r} is not expected behind {before!r}")
        elif kind == "open":
            self._groups.append([[]])
        elif kind == "or":
            self._groups[-1].append([])
        elif kind == "close":
            self._put(f"({self._closed()})")
        elif kind == "times":
            self._repeat(token)
        elif kind == "name":
            self._put(self.names.setdefault(token, f"r{len(self.names)}"))
        else:
            self._put(_terminal(kind, token))

    def _begin(self, head: str) -> None:
        if len(self._groups) > 1:
            raise ValueError(f"a bracket in the rule {self._head} is not closed")
        if self._groups:
            self.rules[self._head] = self._closed()
        self._head = head
        self._groups.append([[]])

    def _put(self, term: str) -> None:
        self._groups[-1][-1].append(term)

    def _closed(self) -> str:
        return " | ".join(" ".join(way) or '""' for way in self._groups.pop())

    def _repeat(self, times: str) -> None:
        if not self._groups[-1][-1]:
            raise ValueError(f"{times} has nothing to repeat in the rule {self._head}")
        self._put(f"({self._groups[-1][-1].pop()}{times})")


def _terminal(kind: str, token: str) -> str:
    if kind == "any":
        return "/(?s:.)/"
    start = 2 if token.startswith("[^") else 1
    units = _UNIT.findall(token[start:-1])
    characters = [_character(unit) for unit in units]
    if kind == "text":
        return "({})".format(" ".join(map(json.dumps, characters)) or '""')
    # By their numbers, for in Rust some of them are operators beside each other.
    written, at = token[:start], 0
    while at < len(units):
        is_range = at + 2 < len(units) and units[at + 1] == "-"
        ends = characters[at : at + 3 : 2] if is_range else characters[at : at + 1]
        written += "-".join(f"\\x{{{ord(end):x}}}" for end in ends)
        at += 3 if is_range else 1
    return f"/{written}]/"


def _character(unit: str) -> str:
    if not unit.startswith("\\"):
        return unit
    escape, digits = unit[1:], unit[2:]
    try:
        character = _ESCAPES.get(escape) or chr(int(digits, 16))
        character.encode()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{unit} is no character") from error
    return character
