"""How a row is put to models: the prompt, its examples, where an answer ends, parts of texts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from eva_local.config.specs import EnsembleSpec
from eva_local.evaluate.metrics import metric_of
from eva_local.evaluate.rows import Metric, Task, TaskRow, cut, pieces
from eva_local.llama.prompt import Prompt
from eva_local.llama.tokenizer import without
from eva_local.types import THINKING_KEYS, Message, Sampling

# A calculation that GSM8K writes out for a calculator, and the mark before its result.
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_RESULT = re.compile(r"^####\s*(.+?)\.?$")
# The word in front of a prompt: "Question:", "French:".
_LABEL = re.compile(r"[^\W\d_][^:\n]{0,30}:")
# Symbols are enough for the longest usual answer of a task with this metric.
_MAX_TOKENS: dict[Metric, int] = {"number": 200, "exact": 16, "chrF": 80}
_TRANSLATION_TOKENS = 100


@dataclass(frozen=True, slots=True)
class Conditions:
    """How rows are put to every contestant.

    Of a long text the first `text_bytes` are taken; of each of its parts the first
    `prompt_bytes` are read, and not scored. With `own_shots` examples are shared out: of so many
    members, each has others.
    """

    chat: bool = False
    max_tokens: int | None = None
    text_bytes: int | None = None
    prompt_bytes: int = 0
    own_shots: int = 0

    def shots_of(self, task: Task) -> int:
        """Return how many examples stand before each row of a task."""
        return len(task.shots) // (self.own_shots or 1)


PLAIN = Conditions()


def prompt_of(row: TaskRow, task: Task, conditions: Conditions = PLAIN) -> Prompt:
    """Return the prompt of a row, after the examples of its task.

    In a chat it is a conversation for the members' own templates, else plain text that ends where
    the answer begins, without a space.
    """
    shots = () if conditions.own_shots else task.shots
    if not conditions.chat:
        return solved(shots) + row.prompt.rstrip(" ")
    turns = []
    for shot in shots:
        turns += [Message("user", shot.prompt), Message("assistant", solution(shot))]
    return [*turns, Message("user", row.prompt)]


def solved(shots: Sequence[TaskRow]) -> str:
    """Return examples as plain text to go on with."""
    return "".join(f"{shot.prompt.rstrip()} {solution(shot)}\n\n" for shot in shots)


def with_shots(spec: EnsembleSpec, task: Task, conditions: Conditions) -> EnsembleSpec:
    """Return an ensemble whose members have the examples that each is to have by itself."""
    if not (count := conditions.own_shots):
        return spec
    members = [
        replace(member, prefix=solved(task.shots[number % count :: count]) + member.prefix)
        for number, member in enumerate(spec.members)
    ]
    return replace(spec, members=tuple(members))


def scored_of(
    row: TaskRow, task: Task, missing: frozenset[int], conditions: Conditions = PLAIN
) -> list[tuple[Prompt, str]]:
    """Return what is scored of a row, each with the prompt before it.

    That is its choices, its right answer, or the parts of its text, but for those that are all
    prompt. Characters with a byte of `missing`, which some member cannot spell, are left out.
    """

    def spelled(text: str) -> bytes:
        return without(text.encode("utf-8", "replace"), missing)

    if task.kind == "bpb":
        data = spelled(row.text)
        if conditions.text_bytes is not None:
            data = cut(data, conditions.text_bytes)[0]
        parts = [cut(piece, conditions.prompt_bytes) for piece in pieces(data)]
        return [(start.decode(), rest.decode()) for start, rest in parts if rest]
    prompt = prompt_of(row, task, conditions)
    said = row.choices if task.kind == "choice" else (solution(row),)
    return [(prompt, spelled(text if conditions.chat else f" {text}").decode()) for text in said]


def solution(row: TaskRow) -> str:
    """Return the right answer of an example on one line, with the steps that lead to it."""
    if row.choices:
        return _line(row.choices[row.label])
    if not row.rationale:
        return _line(row.answers[0])
    lines = []
    for line in _CALCULATOR.sub("", row.rationale).splitlines():
        if result := _RESULT.match(line.strip()):
            lines.append(f"The answer is {result[1]}.")
        elif line.strip():
            # Sentences that lines kept apart need a full stop in between.
            lines.append(line.strip() if line.strip()[-1] in ".!?:,;" else f"{line.strip()}.")
    return _line(" ".join(lines))


def sampling_of(
    task: Task, conditions: Conditions = PLAIN, given: Sampling | None = None
) -> Sampling:
    """Return how answers of a task are drawn: greedy, with an end and a length that fit it.

    Only whether and how members think before them is as `given`.

    After examples an answer is one line, as theirs are. Without them it ends at a blank line,
    or where the model goes on to the next question by itself. In a chat only END counts.
    """
    usual = _TRANSLATION_TOKENS if task.kind == "translate" else _MAX_TOKENS[metric_of(task)]
    stop: tuple[str, ...] = ()
    if not conditions.chat:
        label = _LABEL.match(task.rows[0].prompt)
        stop = ("\n",) if task.shots else ("\n\n", *([f"\n{label[0]}"] if label else []))
    kept = {key: getattr(given or Sampling(), key) for key in THINKING_KEYS}
    # Thoughts may be drawn, and the same command is to give the same figures.
    seed = 0 if kept["thinking"] == "apart" else None
    return Sampling(max_tokens=conditions.max_tokens or usual, stop=stop, seed=seed, **kept)


def _line(text: str) -> str:
    return " ".join(text.split())
