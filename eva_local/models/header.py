"""The header of a GGUF file: what it says of its model, read without opening the model.

gguf.GGUFReader does this too, but takes seconds for a large vocabulary, of which only the size
is wanted here.
"""

import math
import mmap
import os
import struct
import tomllib
from collections.abc import Mapping
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
# Which layer keeps what of a text, llama.cpp knows by the architecture and by keys of the file.
# It has no model with more layers.
_MOST_LAYERS = 512
# All their layers are recurrent; in Falcon-H1 all are that, and attention too.
_RECURRENT = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "falcon-h1")
# Each Nth layer is attention, where the file does not say otherwise.
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
# Each Nth layer is not windowed, where the file does not say otherwise: the last, or the first.
_PATTERNS = {
    **dict.fromkeys(("gemma2", "gpt-oss"), 2),
    **dict.fromkeys(("afmoe", "cohere2", "exaone-moe", "mellum", "muse-glimmer", "olmo2"), 4),
    "gemma3n": 5,
    "gemma3": 6,
    "plamo3": 8,
    **dict.fromkeys(_FULL_FIRST := ("cohere2moe", "laguna", "smallthinker"), 4),
}
_STATE_BYTES = 4  # f32, whatever the type of the cache


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its model; a value that the file does not name is None.

    `parameters` are those of all files that the model is split into, `n_files`. Of what
    llama.cpp's cache holds of a text, `n_cached` counts the numbers for each token, `n_windowed`
    those of them in layers that need the last `window` tokens only; `state_bytes` are held once.
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
    n_cached: int | None = None
    n_windowed: int = 0
    window: int = 0
    state_bytes: int = 0
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
        **_cache_size(values, architecture),
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


def _cache_size(values: Mapping[str, object], architecture: str) -> dict[str, int]:
    """Add up the layers of a model for a `Header`; nothing where its file tells too little.

    Attention keeps keys and values of every token, a recurrent layer one state of a text.
    """
    layers = _Layers(values, architecture)
    if not 0 < layers.count <= _MOST_LAYERS:
        return {}
    state = layers.state()
    recurrent = layers.recurrent() if state else [False] * layers.count
    both = architecture == "falcon-h1"
    n_own = layers.count - layers.number("attention.shared_kv_layers")
    holds = [i < n_own and (both or not recurrent[i]) for i in range(layers.count)]
    full, short = layers.pair(""), layers.pair("_swa")
    windowed = layers.windowed()
    heads = layers.each("attention.head_count_kv", "attention.head_count")
    if not any(heads) and not state:
        return {}
    of_window = sum(heads[i] * short for i in range(layers.count) if holds[i] and windowed[i])
    of_all = sum(heads[i] * full for i in range(layers.count) if holds[i] and not windowed[i])
    return {
        "n_cached": of_all + of_window,
        "n_windowed": of_window,
        "window": layers.number("attention.sliding_window") if of_window else 0,
        "state_bytes": _STATE_BYTES * state * sum(recurrent),
    }


class _Layers:
    def __init__(self, values: Mapping[str, object], architecture: str) -> None:
        self._values = values
        self._architecture = architecture
        # The last ones only draft, and are not asked.
        self.count = self.number("block_count") - self.number("nextn_predict_layers")

    def number(self, key: str, default: int = 0) -> int:
        value = self._value(key)
        return value if isinstance(value, int) else default

    def each(self, key: str, otherwise: str | None = None) -> list[int]:
        """Return a number for each layer; that of a key that is absent is `otherwise`, or 0."""
        value = self._value(key)
        if value is None and otherwise is not None:
            return self.each(otherwise)
        found = value if isinstance(value, tuple) else (self.number(key),) * self.count
        return [int(number) for number in found[: self.count]] + [0] * (self.count - len(found))

    def pair(self, ending: str) -> int:
        """Return the width of a head's key and value, in layers that are windowed or are not."""
        first = self.each("attention.head_count")[0]
        head = self.number("embedding_length") // first if first else 0
        key = self.number("attention.key_length", head)
        value = self.number("attention.value_length", head)
        if self.number("attention.key_length_mla") and self.number("attention.value_length_mla"):
            return key  # which the values are computed from
        value = self.number(f"attention.value_length{ending}", value)
        return self.number(f"attention.key_length{ending}", key) + value

    def windowed(self) -> list[bool]:
        pattern = self._value("attention.sliding_window_pattern")
        if not self.number("attention.sliding_window"):
            return [False] * self.count
        if isinstance(pattern, tuple):
            return [bool(each) for each in self.each("attention.sliding_window_pattern")]
        default = _PATTERNS.get(self._architecture, 1)
        every = self.number("attention.sliding_window_pattern", default)
        full = 0 if self._architecture in _FULL_FIRST else every - 1
        return [every == 0 or i % every != full for i in range(self.count)]

    def recurrent(self) -> list[bool]:
        if self._architecture in _RECURRENT:
            return [True] * self.count
        if self._value("attention.recurrent_layers") is not None:
            return [bool(each) for each in self.each("attention.recurrent_layers")]
        every = self.number("full_attention_interval", _INTERVALS.get(self._architecture, 0))
        if every:
            return [(i + 1) % every != 0 for i in range(self.count)]
        heads = self.each("attention.head_count_kv", "attention.head_count")
        if not self._architecture.startswith("nemotron_h"):
            return [not count for count in heads]
        widths = self.each("feed_forward_length")
        return [not count and not width for count, width in zip(heads, widths, strict=True)]

    def state(self) -> int:
        """Return how many numbers a recurrent layer holds: of its convolution, and its state."""
        width, heads = self.number("embedding_length"), self.each("attention.head_count")[0]
        kernel, inner = self.number("ssm.conv_kernel"), self.number("ssm.inner_size")
        if size := self.number("wkv.head_size"):
            return width * (self.number("token_shift_count", 2) + size)
        if length := self.number("shortconv.l_cache"):
            return width * (length - 1)
        if size := self.number("kda.head_dim"):
            return heads * size * (3 * ((kernel or 4) - 1) + size)
        if self._architecture == "minimax-01":
            return heads * self.number("attention.key_length", width // max(heads, 1)) ** 2
        size = self.number("ssm.state_size")
        convolved = inner + 2 * self.number("ssm.group_count") * size
        return max(kernel - 1, 0) * convolved + size * inner

    def _value(self, key: str) -> object:
        return self._values.get(f"{self._architecture}.{key}")


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
    """Read a value; of an array, keep numbers for each layer only, else its length."""
    if kind == _STRING:
        return _text(data)
    if kind != _ARRAY:
        return _unpack(data, _NUMBERS[kind])
    kind, length = _unpack(data, "I"), _unpack(data, "Q")
    if kind in (_STRING, _ARRAY):
        for _ in range(length):
            _skip(data, _unpack(data, "Q")) if kind == _STRING else _read_value(data, kind)
        return length
    numbers = f"<{length}{_NUMBERS[kind]}"
    if length > _MOST_LAYERS:
        _skip(data, struct.calcsize(numbers))
        return length
    return struct.unpack(numbers, data.read(struct.calcsize(numbers)))


def _tensor_size(data: mmap.mmap) -> int:
    _text(data)
    dimensions = [_unpack(data, "Q") for _ in range(_unpack(data, "I"))]
    _skip(data, 4 + 8)  # its type and where its data begins
    return math.prod(dimensions)
