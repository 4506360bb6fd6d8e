"""Rows of a task: a prompt with what would be right, choices with the right one, or a text.

And what each contestant made of them, kept in a file so that runs go on.
"""

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, structs

from eva_local.engine.detokenizer import refuse_utf16
from eva_local.errors import InputError, refusing
from eva_local.jsonl import Checked, JsonlFile, checked_lines
from eva_local.llama.tokenizer import border
from eva_local.reading import Number, Whole

Kind = Literal["generate", "choice", "bpb", "translate"]
Metric = Literal["exact", "number", "choice", "chrF", "bits"]
# Rows that come with the package, for a first look: `eval` without any, and `check`.
BUILT_IN = tuple(Path(__file__).parent / "rows" / f"{name}.jsonl" for name in ("questions", "text"))
# Short enough for a context of 4,096 tokens, whatever the vocabulary.
_LONGEST = 3000
# A cut is between words where one ends so near; Chinese has a space once in a while.
_LONGEST_WORD = 100
_NEEDED: dict[Kind, tuple[str, ...]] = {
    "choice": ("prompt", "choices"),
    "bpb": ("text",),
    "generate": ("prompt", "answers"),
    "translate": ("prompt", "answers"),
}
# Results that were made in another way have another key: by other software, or by other rules
# within a version, which the number tells.
_MADE_BY = [2, version("eva-local"), version("llama-cpp-python")]


class TaskRow(Struct, frozen=True, rename={"family": "task", "language": "tgt_lang", "name": "id"}):
    """One example of the family `family`; what its kind of task does not need is empty.

    `answers` are all that count as right, `label` is the place of the right one of `choices`,
    `rationale` leads to the answer step by step. Where answers are translations, `language`
    is theirs. Files hold it under its keys in JSON, and more that is not read here.
    """

    name: Any = None
    family: str = ""
    prompt: str = ""
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    label: Whole = 0
    text: str = ""
    rationale: str = ""
    language: str = ""


class _Text(Struct):
    id: Any = None
    text: str = ""
    question: str = ""
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """Rows of one kind, and solved examples of the same family that go before each prompt.

    `metric` is what it counts in, where that does not follow from these rows: a part of a task
    counts as the whole.
    """

    name: str
    kind: Kind
    rows: tuple[TaskRow, ...]
    shots: tuple[TaskRow, ...] = ()
    metric: Metric | None = None

    @property
    def scored(self) -> bool:
        """Whether given texts are scored, and none is written."""
        return self.kind in ("choice", "bpb")


def read_tasks(
    files: Sequence[Path],
    kind: Kind | None = None,
    limit: int | None = None,
    shot_files: Sequence[Path] = (),
    n_shots: int = 0,
) -> list[Task]:
    """Read a task from each file: its first `limit` rows, with `n_shots` examples.

    A task takes its examples from the file of examples that is of its family, or from the only
    one. Without `kind`, the fields of the rows tell it, and a file that is not named .jsonl is a
    text. Where the kind is bpb, a row without a text is a question or prompt that is taken for
    one. Raises InputError for rows that do not fit, and where a task has too few examples.
    """
    examples = [read_rows(path) for path in shot_files]
    tasks: dict[str, Task] = {}
    for path in files:
        name = path.stem
        if name in tasks:
            raise InputError(f"{path}: another file is called {name} too; rename one")
        is_text = kind == "bpb" or (kind is None and path.suffix != ".jsonl")
        rows = (read_texts if is_text else read_rows)(path)[:limit]
        found = kind or _kind(rows[0])
        for number, row in enumerate(rows, 1):
            _refuse_unfit(row, found, f"{path}, row {number}")
        shots = () if found == "bpb" else _shots(rows[0].family, examples, path, n_shots)
        for row in shots:
            _refuse_unfit(row, found, f"the examples of {name}, {row.name}")
        tasks[name] = Task(name, found, rows, shots)
    return list(tasks.values())


def read_rows(path: Path) -> tuple[TaskRow, ...]:
    """Read the rows of a file of JSON lines; raise InputError, naming the line, for a bad one."""
    return tuple(_row(line, number) for number, line in enumerate(_lines(path), 1))


def read_texts(path: Path) -> tuple[TaskRow, ...]:
    """Read texts: one from each row of JSON lines; a file of another name is cut into rows."""
    if path.suffix == ".jsonl":
        found = [line.read(_Text) for line in _lines(path)]
        texts = [(one.id, one.text or one.question or one.prompt) for one in found]
        return tuple(TaskRow(_name(own, n), text=text) for n, (own, text) in enumerate(texts, 1))
    try:
        text = _read(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no UTF-8 text: {error}") from error
    if not text:
        raise InputError(f"{path}: holds no text")
    parts = [part.decode() for part in pieces(text.encode())]
    return tuple(TaskRow(str(number), text=part) for number, part in enumerate(parts, 1))


def cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    """Cut UTF-8 text in two, the first at most `size` bytes: between words, else characters."""
    if len(data) <= size:
        return data, b""
    place = border(data, size, size - _LONGEST_WORD)
    return data[:place], data[place:]


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut UTF-8 text into parts that are short enough for a context."""
    while data:
        part, data = cut(data, _LONGEST)
        yield part


def _read(path: Path) -> bytes:
    with refusing(f"{path}: cannot be read"):
        data = path.read_bytes().removeprefix(BOM_UTF8)
    refuse_utf16(data, str(path))
    return data


def _lines(path: Path) -> list[Checked]:
    lines, torn = checked_lines(path, _read(path).strip())
    if torn:
        raise InputError(f"{path}, line {len(lines) + 1} is no JSON")
    if not lines:
        raise InputError(f"{path}: holds no row")
    return lines


def _row(line: Checked, number: int) -> TaskRow:
    row = line.read(TaskRow)
    if row.choices and not row.label < len(row.choices):
        raise line.problem(f"has label {row.label} of {len(row.choices)} choices")
    if row.choices and not ("label" in line.values and all(row.choices)):
        raise line.problem("needs a label beside its choices, none of which is empty")
    return structs.replace(row, name=_name(row.name, number))


def _name(given: object, number: int) -> str:
    return given if isinstance(given, str) else str(number)


def _kind(row: TaskRow) -> Kind:
    if row.choices:
        return "choice"
    if row.text and not row.prompt:
        return "bpb"
    return "translate" if row.language else "generate"


def _refuse_unfit(row: TaskRow, kind: Kind, where: str) -> None:
    for field in _NEEDED[kind]:
        if not getattr(row, field):
            raise InputError(f"{where}: has no {field}, which a task of kind {kind} needs")


def _shots(
    family: str, examples: Sequence[tuple[TaskRow, ...]], path: Path, count: int
) -> tuple[TaskRow, ...]:
    if not examples or not count:
        return ()
    only = examples[0] if len(examples) == 1 else None
    fitting = next((rows for rows in examples if rows[0].family == family), only)
    if fitting is None:
        raise InputError(
            f"{path}: no file of examples is of the task {family!r}; measure it by itself, with "
            "the one file of examples that it should have"
        )
    if len(fitting) < count:
        raise InputError(f"{path}: {count} examples are wanted, and there are {len(fitting)}")
    return fitting[:count]


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant made of one row.

    `text` is a generated answer. `log_likelihoods`, in nats, and `n_bytes` are of each choice,
    or of the one text that was scored. `filtered` counts the votes of each member that were
    dropped in `steps` steps.
    """

    steps: Whole
    filtered: tuple[Whole, ...]
    seconds: Number
    text: str = ""
    log_likelihoods: tuple[Number, ...] = ()
    n_bytes: tuple[Whole, ...] = ()


class _Key(Struct):
    key: str


class Results(JsonlFile):
    """A file of results, each under the key of what it depends on; `fresh` does all again.

    Every result is written at once, by as many processes as there are; what is there stays.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        refusal = f"the results {path} cannot be kept"
        with refusing(refusal):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines, _ = checked_lines(path, path.read_bytes() if path.exists() else b"")
        #: Of several results of one key the last counts.
        self.known = {} if fresh else {line.read(_Key).key: line.read(Result) for line in lines}
        super().__init__(path, refusal)

    def add(self, key: str, result: Result, about: Mapping[str, str]) -> None:
        """Keep a result; `about` says in words what it is of."""
        self.known[key] = result
        self.append({"key": key, **about, **asdict(result)})


def key_of(*parts: object) -> str:
    """Return a short name of everything that a result depends on."""
    text = json.dumps([*_MADE_BY, *parts], sort_keys=True, default=asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def votes_filtered(results: Sequence[Result]) -> float | None:
    """Return the share of votes that were dropped; None where a member was alone."""
    members = len(results[0].filtered)
    votes = members * sum(result.steps for result in results)
    if members < 2 or not votes:
        return None
    return sum(sum(result.filtered) for result in results) / votes
