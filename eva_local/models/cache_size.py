"""What llama.cpp's cache holds of a text, from what a GGUF file says of its layers.

Attention keeps keys and values of every token, a recurrent layer one state of a text, whatever
its length. Which layer is what, llama.cpp knows by the architecture and by these keys.
"""

from collections.abc import Mapping

# llama.cpp has no model with more layers.
MOST_LAYERS = 512
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


def cache_size(values: Mapping[str, object], architecture: str) -> dict[str, int]:
    """Add up the layers of a model for a `Header`; nothing where its file tells too little."""
    layers = _Layers(values, architecture)
    if not 0 < layers.count <= MOST_LAYERS:
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
