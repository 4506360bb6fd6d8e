"""What an answer cost, and how the members voted: the line after it, /stats and /why."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.cells import set_cell_size
from rich.text import Text

from eva_local.chat.chat import Reply
from eva_local.chat.reader import counted
from eva_local.engine.detokenizer import harmless
from eva_local.errors import InputError
from eva_local.trace import disputed, summarize, verdict
from eva_local.types import Candidate, Step, Usage

# One for each member, in the ensemble's order; legible on light and dark screens.
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
_MOST_DISPUTED = 3
_CANDIDATES = 3
# Columns: with three more and the percentage, a line fits into 40.
_PIECE, _BAR = 18, 10
_BEFORE = 40


def summary_line(answer: Reply) -> str:
    """Return what an answer cost, on one line."""
    summary = summarize(answer.members, answer.steps)
    written = counted(summary.tokens, "token", "tokens")
    written += _thought(sum(bool(step.piece) for step in answer.steps if _is_thought(step)))
    if answer.seconds > 0:
        written += f" at {(len(answer.steps) - 1) / answer.seconds:.1f}/s"
    parts = [written]
    if len(summary.members) > 1:
        n_steps = len(answer.steps)
        parts.append(", ".join(f"{m.name} {m.carried / n_steps:.0%}" for m in summary.members))
        parts.append(f"{sum(member.filtered for member in summary.members)} filtered")
    fullest = max(zip(answer.used, answer.limits, strict=True), key=lambda pair: pair[0] / pair[1])
    parts.append("context {}/{}".format(*fullest))
    return " · ".join(parts)


def usage_line(usage: Usage | None) -> str:
    """Return what an answer cost each member; None is the usage of one that was stopped."""
    if usage is None:
        return "stopped before the end"
    steps = max(usage.steps, 1)
    rest = zip(usage.decode_seconds, usage.prompt_seconds, strict=True)
    rate = usage.steps / max(usage.seconds - usage.first_seconds, 1e-9)
    decoding = [f"{1000 * (whole - prompt) / steps:.1f} ms" for whole, prompt in rest]
    each, filtered = (
        ", ".join(f"{name} {value}" for name, value in zip(usage.members, values, strict=True))
        for values in (decoding, usage.filtered)
    )
    return (
        f"{usage.steps} tokens{_thought(usage.reasoning_steps)}, {rate:.1f} tokens/s, "
        f"first after {usage.first_seconds:.2f} s"
        f" | decoding a token: {each} | votes filtered: {filtered}"
        + (f" | {usage.accepted} of {usage.drafted} drafted tokens came" if usage.drafted else "")
    )


def _thought(tokens: int) -> str:
    return f" ({tokens} thought)" if tokens else ""


def _is_thought(step: Step) -> bool:
    return step.reasoning is not None


def vote_lines(answer: Reply, number: int | None) -> Iterator[Text]:
    """Yield the votes on token `number` (from 1), or on the most disputed ones; InputError."""
    steps = answer.steps
    if number is None:
        numbers = [number for number, step in enumerate(steps, 1) if disputed(step)]
        apart = sorted(numbers, key=lambda n: steps[n - 1].disagreement or 0.0, reverse=True)
        shown = sorted(apart[:_MOST_DISPUTED])
        if not numbers:
            yield Text("No vote was filtered, and all members would have chosen the same tokens.")
            yield Text(f"/why N shows the votes on token N, from 1 to {len(steps)}.", style="dim")
            return
        yield _carried(answer)
        most = f"; the {len(shown)} most disputed:" if len(shown) < len(numbers) else ":"
        yield Text(f"{len(numbers)} of {len(steps)} tokens were disputed{most}", style="dim")
    elif 1 <= number <= len(steps):
        shown = [number]
    else:
        raise InputError(f"the last answer has tokens 1 to {len(steps)}, not {number}")
    for each in shown:
        yield from _step_lines(answer, each)


def _carried(answer: Reply) -> Text:
    text = Text()
    for is_thought, steps in groupby(answer.steps, _is_thought):
        for step in steps:
            if step.trace is not None:
                colour = _colour(answer.members.index(step.trace.carrier))
                style = f"dim {colour}" if is_thought else colour
                text.append(harmless(step.reasoning or step.text), style=style)
        text.rstrip()
        text.append("\n")
    names = (Text(name, style=_colour(number)) for number, name in enumerate(answer.members))
    return text.append_text(Text(" · ").join(names))


def _step_lines(answer: Reply, number: int) -> Iterator[Text]:
    step = answer.steps[number - 1]
    trace, chosen = step.trace, step.piece
    assert trace is not None
    text, earlier = (_is_thought(step), step.member), answer.steps[: number - 1]
    pieces = b"".join(one.piece for one in earlier if (_is_thought(one), one.member) == text)
    before = repr(pieces.decode("utf-8", "replace"))[1:-1]
    before = before if len(before) <= _BEFORE else f"…{before[-_BEFORE:]}"
    where = ", in the thought" if _is_thought(step) else ""
    yield Text.assemble(
        (f"\ntoken {number} of {len(answer.steps)}{where}  ", "bold"),
        (f"{before} → ", "dim"),
        (_shown(chosen), "bold"),
    )
    bits = step.disagreement
    yield Text("together" + ("" if bits is None else f", {bits:.2f} bits apart"))
    yield from _bars(trace.top[:_CANDIDATES], chosen, "default")
    for ballot in trace.ballots:
        colour = _colour(answer.members.index(ballot.member))
        top = list(ballot.top[:_CANDIDATES])
        if ballot.chosen > 0 and all(candidate.piece != chosen for candidate in top):
            top.append(Candidate(chosen, ballot.chosen))
        said = f"kept, weight {ballot.weight:.0%}" if ballot.stayed else ballot.reason
        said = f"filtered: {said}" if verdict(ballot) == "filtered" else said
        yield Text.assemble((ballot.member, colour), f"  {said}")
        yield from _bars(top, chosen, colour)


def _bars(candidates: Sequence[Candidate], chosen: bytes, colour: str) -> Iterator[Text]:
    for candidate in candidates:
        mark, style = ("▸", "bold") if candidate.piece == chosen else (" ", "")
        yield Text.assemble(
            (set_cell_size(f" {mark}{_shown(candidate.piece)}", _PIECE), style),
            f" {candidate.probability:6.1%} ",
            ("█" * round(_BAR * candidate.probability), colour),
        )


def _shown(piece: bytes) -> str:
    """Write a piece so that spaces, control characters and half characters can be seen."""
    if not piece:
        return "END"
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return f"<{piece.hex(' ')}>"


def _colour(member: int) -> str:
    return _COLOURS[member % len(_COLOURS)]
