"""The description of the server is of what there is."""

from __future__ import annotations

import json
from typing import Any

from eva_local.openai.request import CHAT, COMPLETION, KEYS
from eva_local.server.app import ROUTES
from tools.openapi import REFUSED, document

# Known only to be refused, or to ask for nothing.
UNDONE = {
    *("best_of", "suffix", "functions", "function_call", "modalities"),
    *("mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range", "typical_p", "typ_p"),
    *("min_tokens", "n_probs", "length_penalty", "ignore_eos", "use_beam_search"),
    *("continue_final_message", "add_generation_prompt", "stop_token_ids", "images"),
    *("previous_response_id", "conversation", "max_tool_calls", "moderation"),
    *("background", "truncation", "tfs_z"),
}

DOCUMENT = document(("pair", "pair/a"))
SCHEMAS = DOCUMENT["components"]["schemas"]


def body_of(path: str) -> dict[str, Any]:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return SCHEMAS[name]["properties"]


def test_each_path_is_described_once() -> None:
    methods = {route.path: route.methods for route in ROUTES}
    for path, operations in DOCUMENT["paths"].items():
        assert {method.upper() for method in operations} <= methods[path]
    left_out = methods.keys() - DOCUMENT["paths"].keys()
    short = {path for path in left_out if f"/v1{path}" in methods}
    assert left_out - short - {"/v1/health"} == {*REFUSED, "/v1/models/{name:path}"}


def test_every_key_is_described() -> None:
    chat = body_of(CHAT)
    described = {*chat, *body_of(COMPLETION)}
    assert KEYS - described == UNDONE
    assert described <= KEYS
    assert chat["model"] == {"enum": ["pair", "pair/a"]}
    assert SCHEMAS["ChatRequest"]["required"] == ["messages"]
    assert chat["top_p"] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert "input" in body_of("/v1/responses")


def test_thinking_is_described() -> None:
    options = SCHEMAS["ChatRequest"]["properties"]
    efforts = json.dumps(options["reasoning_effort"])
    assert all(word in efforts for word in ("none", "low", "xhigh"))
    assert {"thinking", "enable_thinking", "chat_template", "chat_template_kwargs"} <= set(options)
    assert options["reasoning_budget"] == options["thinking_budget"]
    assert {"reasoning_content", "reasoning"} <= set(SCHEMAS["ChatMessage"]["properties"])
