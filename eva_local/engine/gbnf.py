"""A grammar in GBNF -> the same in llguidance's own language.

llguidance's own translation takes words for terminals, of which it follows the longest: of a word
before a comma and a word after it, nothing would be left for the second. Here characters are the
only terminals.
"""

import json
import re

_TOKEN = re.compile(
    r"(?P<space>\s+|#[^\n]*)"
    r'|(?P<text>"(?:\\.|[^"\\])*")|(?P<members>\[(?:\\.|[^\]\\])*\])|(?P<any>\.)'
    r"|(?P<rule>[\w-]+)[ \t]*::=|(?P<name>[\w-]+)"
    r"|(?P<same>[()|*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})|(?P<wrong>.)",
    re.DOTALL,
)
_HEX = "[0-9a-fA-F]"
_UNIT = re.compile(rf"\\x{_HEX}{{2}}|\\u{_HEX}{{4}}|\\U{_HEX}{{8}}|\\.|[^\\]", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", **{each: each for each in '"\\[]'}}
# Otherwise a mask would admit one spelling only of what is forced.
OPTIONS = '%llguidance {"no_forcing": true}'


def read_gbnf(gbnf: str) -> str:
    """Return a grammar in Lark, which is put together as GBNF is; raise ValueError."""
    names, ruled, lark = {"root": "start"}, set[str](), [OPTIONS]
    for match in _TOKEN.finditer(gbnf):
        kind, token = str(match.lastgroup), match[0]
        if kind == "wrong" or not (ruled or kind in ("space", "rule")):
            before = gbnf[: match.start()][-20:]
            raise ValueError(f"{token!r} is not expected behind {before!r}")
        if kind in ("rule", "name"):
            own = f"r{len(names)}_{re.sub('[^a-z0-9]', '_', match[kind].lower())}"
            token = names.setdefault(match[kind], own)
        if kind == "rule":
            ruled.add(match[kind])
            # In one line there.
            token = f"\n{token}:"
        elif kind in ("text", "members", "any"):
            token = _terminal(kind, token)
        if kind != "space":
            lark.append(token)
    for name in names.keys() - ruled:
        raise ValueError(f"there is no rule {name}")
    return " ".join(lark)


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
