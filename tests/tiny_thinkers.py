"""Tiny models of random weights with the templates and marks of models that think."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf import TokenType

from tools.tiny_gguf import write_tiny_gguf

_USER, _CONTROL = TokenType.USER_DEFINED, TokenType.CONTROL
_CHATML = {"<|im_start|>": _CONTROL, "<|im_end|>": _CONTROL}
_THINK = {"<think>": _USER, "</think>": _USER}
#: A template of llama.cpp's source, and the tokens of its marks with their kinds.
FAMILIES: dict[str, tuple[str, Mapping[str, TokenType]]] = {
    "qwen35": ("Qwen3.5-4B", {**_CHATML, **_THINK}),
    "gpt-oss": (
        "openai-gpt-oss-120b",
        dict.fromkeys(("<|channel|>", "<|message|>", "<|start|>", "<|end|>"), _USER)
        | {"<|return|>": _CONTROL, "<|call|>": _CONTROL},
    ),
    "r1": (
        "llama-cpp-deepseek-r1",
        {"<｜User｜>": _CONTROL, "<｜Assistant｜>": _CONTROL, **_THINK},
    ),
    "ministral": (
        "mistralai-Ministral-3-14B-Reasoning-2512",
        dict.fromkeys(("[INST]", "[/INST]", "[THINK]", "[/THINK]"), _CONTROL),
    ),
    "gemma4": (
        "google-gemma-4-31B-it",
        {"<|turn>": _CONTROL, "<turn|>": _CONTROL, "<|channel>": _USER, "<channel|>": _USER},
    ),
    "glm": ("GLM-4.6", {"<|user|>": _CONTROL, "<|assistant|>": _CONTROL, **_THINK}),
    "nemotron": ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {**_CHATML, **_THINK}),
    "thoughtless": ("Qwen-Qwen2.5-7B-Instruct", _CHATML),
}


def write_thinker(folder: Path, family: str, templates: Mapping[str, str]) -> Path:
    """Write a tiny model of a family into a folder, and return its file."""
    template, special = FAMILIES[family]
    return write_tiny_gguf(
        folder / f"{family}.gguf",
        n_layers=1,
        n_ctx=2048,
        chat_template=templates[template],
        special=special,
        seed=sorted(FAMILIES).index(family),
    )


def write_thinkers(folder: Path, templates: Mapping[str, str]) -> Path:
    """Write all of them, and a models.toml with pairs of them; return that."""
    lines = ['schema = 1\n[defaults]\nensemble = "mixed"\nn_ctx = 2048\nmax_tokens = 12\n']
    for family in FAMILIES:
        path = write_thinker(folder, family, templates)
        lines.append(f'[models.{family}]\npath = "{path}"\n')
    pairs = {"thinkers": ["qwen35", "gpt-oss"], "mixed": ["qwen35", "thoughtless"]}
    lines += [f"[ensembles.{name}]\nmembers = {members}\n" for name, members in pairs.items()]
    lines.append('[ensembles.panel]\nthinking = "apart"\nmembers = [')
    lines.append('{ model = "qwen35", name = "calm", system = "Be calm." }, "qwen35", "gpt-oss"]\n')
    config = folder / "models.toml"
    config.write_text("".join(lines), encoding="utf-8")
    return config
