"""The header of a GGUF file: what it says of its model, read without opening the model.

gguf.GGUFReader does this too, but takes seconds for a large vocabulary, of which only the size
is wanted here.
"""

import math
import mmap
import os
import struct
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eva_local.config.elsewhere import MAGIC
from eva_local.config.specs import part_names
from eva_local.errors import StoreError

_T = TypeVar("_T")

_STRING, _ARRAY = 8, 9
# Value types of the GGUF specification, as struct knows them.
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TOKENS = "tokenizer.ggml.tokens"
# Of several, the one that is for conversations without tools.
TEMPLATES = [f"tokenizer.chat_template{name}" for name in ("", ".default", ".tool_use")]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its model; a value that the file does not name is None.

    `parameters` are those of all files that the model is split into, `n_files`.
    """

    architecture: str
    name: str | None
    licence: str | None
    parameters: int
    n_ctx_train: int | None
    n_vocab: int | None
    tokenizer: str | None
    quantisation: str | None
    has_chat_template: bool
    n_files: int = 1
    chat_template: str | None = None


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file, the first of a model's; StoreError where there is none."""
    values, parameters = _read(path)
    n_files = _value(values, "split.count", int) or 1
    if n_files > 1:
        names = part_names(path.name)
        if len(names) != n_files:
            raise StoreError(
                f"{path}: the first of {n_files} files of a model; it must be named "
                f"NAME-00001-of-{n_files:05}.gguf, and the others beside it after the same fashion"
            )
        parameters += sum(_read(path.with_name(name))[1] for name in names[1:])
    architecture = str(values.get("general.architecture", "unknown"))
    return Header(
        architecture=architecture,
        name=_value(values, "general.name", str),
        licence=_value(values, "general.license", str),
        parameters=parameters,
        n_ctx_train=_value(values, f"{architecture}.context_length", int),
        n_vocab=_value(values, _TOKENS, int),
        tokenizer=_value(values, "tokenizer.ggml.model", str),
        quantisation=_quantisation(_value(values, "general.file_type", int)),
        # Of several, some have names of their own behind that.
        has_chat_template=any(key.startswith("tokenizer.chat_template") for key in values),
        n_files=n_files,
        chat_template=next(filter(None, (_value(values, key, str) for key in TEMPLATES)), None),
    )


def vocabulary_of(path: Path) -> bytes:
    """Return a GGUF file without weights, of which llama.cpp can open the vocabulary."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        data.seek(len(MAGIC) + 4 + 8)
        kept = []
        for _ in range(_unpack(data, "Q")):
            start, key = data.tell(), _text(data)
            _read_value(data, _unpack(data, "I"))
            if not key.startswith("split."):
                kept.append(data[start : data.tell()])
        counts = struct.pack("<QQ", 0, len(kept))
        return b"".join([data[: len(MAGIC) + 4], counts, *kept])


def refusal(path: Path) -> str:
    """Say of a GGUF file that is no language model what it is and what to give; else "".

    What stands before its vocabulary is enough, and takes no time. Of a file that cannot be read
    this says nothing.
    """
    try:
        values, n_tensors = _read(path, beginning=True)
    except StoreError:
        return ""
    architecture = _value(values, "general.architecture", str) or ""
    others = tomllib.loads((Path(__file__).parent / "others.toml").read_text("utf-8"))
    named = {name: told for told, names in others.items() for name in names}
    found = named.get(_value(values, "general.type", str) or "") or named.get(architecture, "")
    is_causal = values.get(f"{architecture}.attention.causal") is not False
    is_pooled = _value(values, f"{architecture}.pooling_type", int)
    if not found and (is_pooled or not is_causal or "bert" in architecture):
        return named["t5encoder"]
    # Of a model in several files, the first may hold no weights.
    if not found and not n_tensors and len(part_names(path.name)) == 1:
        return "a vocabulary without weights; give the file of the whole model"
    return found


def _read(path: Path, *, beginning: bool = False) -> tuple[dict[str, object], int]:
    """Return the values of one file, and how many parameters lie in it.

    Of its beginning alone: those before the vocabulary, and how many tensors there are.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.read(len(MAGIC)) != MAGIC:
                raise ValueError("it does not begin with GGUF")
            if (version := _unpack(data, "I")) not in (2, 3):
                raise ValueError(f"version {version} is not known")
            tensors, values = _unpack(data, "Q"), {}
            for _ in range(_unpack(data, "Q")):
                key = _text(data)
                if beginning and key == _TOKENS:
                    break
                values[key] = _read_value(data, _unpack(data, "I"))
            if beginning:
                return values, tensors
            return values, sum(_tensor_size(data) for _ in range(tensors))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, struct.error, KeyError, RecursionError, OverflowError) as error:
        raise StoreError(f"{path}: not a GGUF file, or a damaged one ({error})") from error


def _value(values: dict[str, object], key: str, kind: type[_T]) -> _T | None:
    return value if isinstance(value := values.get(key), kind) else None


def _quantisation(file_type: int | None) -> str | None:
    from gguf import LlamaFileType  # slow to import, and only this list of names is needed

    names: dict[int | None, str] = {each.value: each.name for each in LlamaFileType}
    name = names.get(file_type)
    return name and name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _unpack(data: mmap.mmap, form: str) -> Any:
    (value,) = struct.unpack(f"<{form}", data.read(struct.calcsize(f"<{form}")))
    return value


def _text(data: mmap.mmap) -> str:
    return str(_unpack(data, f"{_unpack(data, 'Q')}s"), "utf-8", "replace")


def _skip(data: mmap.mmap, length: int) -> None:
    data.seek(length, os.SEEK_CUR)  # a ValueError behind the end


def _read_value(data: mmap.mmap, kind: int) -> object:
    """Read a value; of an array, its length."""
    if kind == _STRING:
        return _text(data)
    if kind != _ARRAY:
        return _unpack(data, _NUMBERS[kind])
    kind, length = _unpack(data, "I"), _unpack(data, "Q")
    if kind in (_STRING, _ARRAY):
        for _ in range(length):
            _skip(data, _unpack(data, "Q")) if kind == _STRING else _read_value(data, kind)
        return length
    _skip(data, struct.calcsize(f"<{length}{_NUMBERS[kind]}"))
    return length


def _tensor_size(data: mmap.mmap) -> int:
    _text(data)
    dimensions = [_unpack(data, "Q") for _ in range(_unpack(data, "I"))]
    _skip(data, 4 + 8)  # its type and where its data begins
    return math.prod(dimensions)
