"""How the members voted, as tables for a terminal: what /why and /stats show."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from rich.bar import Bar
from rich.console import RenderableType
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from eva_local.chat.chat import Reply
from eva_local.chat.typed import counted
from eva_local.engine.detokenizer import harmless
from eva_local.errors import InputError
from eva_local.trace import summarize
from eva_local.trace.page import disputed, verdict
from eva_local.types import Candidate, Step

# One for each member, in the ensemble's order; legible on light and dark screens.
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
_MOST_DISPUTED = 3
_CANDIDATES = 3
_BAR = 16
_BEFORE = 40
_VERDICTS = {"stayed": "kept", "filtered": "filtered", "absent": "not asked"}


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Cut names at the first hyphen that leaves them different from each other."""
    parts = [name.split("-") for name in names]
    for count in range(1, max(map(len, parts), default=1)):
        short = ["-".join(part[:count]) for part in parts]
        if len(set(short)) == len(names):
            return tuple(short)
    return tuple(names)


def summary_line(answer: Reply) -> str:
    """Return what an answer cost, on one line."""
    summary = summarize(answer.trace)
    written = counted(summary.tokens, "token", "tokens")
    if answer.seconds > 0:
        written += f" at {(len(answer.steps) - 1) / answer.seconds:.1f}/s"
    parts = [written]
    if len(summary.members) > 1:
        names = short_names([member.name for member in summary.members])
        carried = [
            f"{name} {member.carried / len(answer.steps):.0%}"
            for name, member in zip(names, summary.members, strict=True)
        ]
        parts.append(", ".join(carried))
        parts.append(f"{sum(member.filtered for member in summary.members)} filtered")
    fullest = max(zip(answer.used, answer.limits, strict=True), key=lambda pair: pair[0] / pair[1])
    parts.append("context {}/{}".format(*fullest))
    return " · ".join(parts)


def cost_table(answer: Reply) -> Table:
    """Return what an answer cost, a column for each member."""
    members = summarize(answer.trace).members
    rows: dict[str, Iterable[str]] = {
        "tokens decided": (str(member.carried) for member in members),
        "votes filtered": (str(member.filtered) for member in members),
        "mean weight": (f"{member.weight:.0%}" for member in members),
        "ms a token": (f"{member.decode_ms:.0f}" for member in members),
    }
    if (usage := answer.trace.usage) is not None:
        read, cached = usage.prompt_tokens, usage.cached_tokens
        rows["prompt tokens"] = map(str, read)
        rows["of them new"] = (str(n - old) for n, old in zip(read, cached, strict=True))
    rows["context"] = (f"{n}/{limit}" for n, limit in zip(answer.used, answer.limits, strict=True))
    rows["first after"] = [f"{answer.first_seconds:.2f} s"]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    for number, member in enumerate(members):
        table.add_column(Text(member.name, style=_colour(number)), justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def vote_tables(answer: Reply, number: int | None) -> Iterator[RenderableType]:
    """Yield a table of token `number` (from 1), or of the most disputed tokens in their order.

    Raises InputError for a token that is not there.
    """
    steps = answer.steps
    if number is not None:
        if not 1 <= number <= len(steps):
            raise InputError(f"the last answer has tokens 1 to {len(steps)}, not {number}")
        yield from _step_tables(answer, number)
        return
    numbers = [number for number, step in enumerate(steps, 1) if disputed(step)]
    if not numbers:
        yield Text("No vote was filtered, and all members would have chosen the same tokens.")
        yield Text(f"/why N shows the votes on token N, from 1 to {len(steps)}.", style="dim")
        return
    by_agreement = sorted(numbers, key=lambda number: _agreement(steps[number - 1]))
    shown = sorted(by_agreement[:_MOST_DISPUTED])
    yield _carried(answer)
    yield Text(
        f"{len(numbers)} of {len(steps)} tokens were disputed"
        + (f"; the {len(shown)} most disputed:" if len(shown) < len(numbers) else ":"),
        style="dim",
    )
    for number in shown:
        yield from _step_tables(answer, number)


def _agreement(step: Step) -> float:
    """Return the mean probability that the members gave the chosen symbol."""
    assert step.trace is not None
    return fmean(b.chosen for b in step.trace.ballots if verdict(b) != "absent")


def _carried(answer: Reply) -> Text:
    """Return the answer in the colours of the members that decided it, with a legend."""
    members = answer.trace.members
    text = Text()
    # A character that several tokens make has the colour of the last of them.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for step in answer.steps:
        if step.trace is not None:
            colour = _colour(members.index(step.trace.carrier))
            text.append(harmless(decoder.decode(step.piece)), style=colour)
    text.rstrip()
    text.append("\n")
    names = (Text(name, style=_colour(number)) for number, name in enumerate(members))
    return text.append_text(Text(" · ").join(names))


def _step_tables(answer: Reply, number: int) -> Iterator[RenderableType]:
    step, chosen = answer.steps[number - 1], answer.steps[number - 1].piece
    trace = step.trace
    assert trace is not None
    before = b"".join(earlier.piece for earlier in answer.steps[: number - 1])
    yield Text.assemble(
        (f"\ntoken {number} of {len(answer.steps)}  ", "bold"),
        (f"{_end_of(before)} → ", "dim"),
        (_shown(chosen), "bold"),
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("member", no_wrap=True)
    table.add_column("vote", no_wrap=True)
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column(" token", max_width=20, no_wrap=True, overflow="ellipsis")
    table.add_column("probability", width=_BAR)
    table.add_column(justify="right", no_wrap=True)
    _add_rows(table, ("together", "", ""), trace.top[:_CANDIDATES], chosen, "default")
    for member, ballot in enumerate(trace.ballots):
        top = list(ballot.top[:_CANDIDATES])
        if ballot.chosen > 0 and all(candidate.piece != chosen for candidate in top):
            top.append(Candidate(chosen, ballot.chosen))
        head = (ballot.member, _VERDICTS[verdict(ballot)], f"{ballot.weight:.0%}")
        _add_rows(table, head, top, chosen, _colour(member))
    yield table
    for ballot in trace.ballots:
        if not ballot.stayed:
            yield Text(f"{ballot.member}: {ballot.reason}", style="dim")


def _add_rows(
    table: Table,
    head: tuple[str, str, str],
    candidates: Sequence[Candidate],
    chosen: bytes,
    colour: str,
) -> None:
    name, *others = head
    cells: list[RenderableType] = [Text(name, style=colour), *others]
    bar_style = "dim" if head[1] == "filtered" else ""
    for candidate in candidates:
        mark, style = ("▸", "bold") if candidate.piece == chosen else (" ", "")
        table.add_row(
            *cells,
            Text(f"{mark}{_shown(candidate.piece)}", style=style),
            Styled(Bar(1, 0, candidate.probability, width=_BAR, color=colour), bar_style),
            f"{candidate.probability:.1%}",
        )
        cells = ["", "", ""]
    if not candidates:
        table.add_row(*cells)


def _shown(piece: bytes) -> str:
    """Write a piece so that spaces, control characters and half characters can be seen."""
    if not piece:
        return "END"
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return f"<{piece.hex(' ')}>"


def _end_of(before: bytes) -> str:
    text = repr(before.decode("utf-8", "replace"))[1:-1]
    return text if len(text) <= _BEFORE else f"…{text[-_BEFORE:]}"


def _colour(member: int) -> str:
    return COLOURS[member % len(COLOURS)]
