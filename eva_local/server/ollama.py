"""ollama's protocol in terms of chats, for programs that speak no other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from eva_local.errors import InputError
from eva_local.openai.answer import Answer, Body, Letterhead, Token, chat_tokens
from eva_local.openai.request import CHAT, COMPLETION, given, in_chat, read_request
from eva_local.openai.shapes import Effort
from eva_local.pages.frame import shipped
from eva_local.server.endpoints import answered
from eva_local.server.service import ServedModel, asked, service_of
from eva_local.types import Step

# Clients ask for the lowest version that has what they need: this is the one whose words are known.
_VERSION = "0.12.11"
# Options of `how` to load a model or to work, which say nothing of the answer, and `words` that are
# none: what is asked, and what `think`, `format` and `stream` say.
_KEYS: dict[str, list[str]] = json.loads(shipped("server/ollama.json"))
_Named = dict[str, Any]
_Call = Mapping[str, Any]
_Nothing = Annotated[list[Any], Meta(max_length=0, description="left out: send messages")]


class OllamaRequest(Struct, kw_only=True):
    """What is asked for in other words than in a chat; all other keys are those of a chat."""

    stream: bool = True
    options: _Named = {}
    format: Literal["", "json"] | _Named = ""
    think: bool | Effort | None = None

    def chat(self) -> dict[str, object]:
        chat = {key: each for key, each in given(self.options).items() if key not in _KEYS["how"]}
        for key in chat.keys() & _KEYS["words"]:
            raise InputError(f"options: {key} is no option; say it beside them")
        chat["stream"] = self.stream
        if self.format:
            schema = {} if isinstance(self.format, str) else self.format
            chat["response_format"] = {"type": "json_object", "schema": schema}
        key = "enable_thinking" if isinstance(self.think, bool) else "reasoning_effort"
        return chat | {key: self.think}


class OllamaChat(OllamaRequest, kw_only=True):
    """A conversation; without messages the model is to be loaded."""

    messages: list[_Named] = []

    def chat(self) -> dict[str, object]:
        return super().chat() | {"messages": self.messages}


class OllamaText(OllamaRequest, kw_only=True):
    """A question, or with `raw` a text to be gone on with."""

    prompt: str = ""
    system: str = ""
    raw: bool = False
    template: Literal[""] = ""
    context: _Nothing = []

    def chat(self) -> dict[str, object]:
        if self.raw and self.system:
            raise InputError("system: a raw prompt is all that is said; leave it out")
        if self.raw:
            return super().chat() | {"prompt": self.prompt}
        turns = {"system": self.system, "user": self.prompt} if self.prompt else {}
        said = [{"role": role, "content": text} for role, text in turns.items() if text]
        return super().chat() | {"messages": said}


class Lines(Letterhead):
    """The answer to one request as JSON, whole or in lines."""

    media = "application/x-ndjson"
    done = alive = b""

    def whole(self, answers: Sequence[Answer]) -> Body:
        (answer,) = answers
        return self.said(answer, answer.tokens, answer.calls) | _end(answer)

    def parts(self, _index: int, answer: Answer, tokens: Sequence[Token]) -> Iterator[Body]:
        step = answer.steps[-1]
        if step.text or step.reasoning or tokens:
            yield self.said(step, tokens)

    def last(self, answers: Sequence[Answer]) -> Body:
        return self.said(None, (), answers[0].calls) | _end(answers[0])

    def event(self, part: Body) -> bytes:
        error: Any = part.get("error")
        return json.dumps({"error": error["message"]} if error else part).encode() + b"\n"

    def said(
        self, said: Answer | Step | None, tokens: Sequence[Token] = (), calls: Sequence[_Call] = ()
    ) -> Body:
        """Return what is said, before its end."""
        text = said.text if said else ""
        told: Body = {"thinking": said.reasoning} if said and said.reasoning else {}
        if calls:
            told["tool_calls"] = [{"id": call["id"], "function": _function(call)} for call in calls]
        message = {"role": "assistant", "content": text, **told}
        body: Body = {"model": self.model, "created_at": _time(datetime.now(UTC).timestamp())}
        body |= {"message": message} if self.endpoint == "/api/chat" else {"response": text, **told}
        return body | ({"logprobs": chat_tokens(tokens)} if tokens else {}) | {"done": False}


BODIES: dict[str, type[OllamaRequest]] = {"/api/chat": OllamaChat, "/api/generate": OllamaText}


async def talk(request: HttpRequest) -> ASGIApp:
    """Answer as ollama does; a request without words finds the model loaded."""
    model, body = await asked(request)
    path = request.scope["path"]
    chat, form = in_chat(body, BODIES[path]), Lines(path, "", 0, model.name)
    if not (chat.get("messages") or chat.get("prompt")):
        if not service_of(request).takes_unknown:
            # Nothing is answered, but what could not be obeyed is refused here, too.
            words = [{"role": "user", "content": "a"}]
            read_request({**chat, "messages": words}, CHAT, model.ensemble.spec.sampling)
        return JSONResponse(form.said(None) | {"done": True, "done_reason": "load"})
    endpoint = COMPLETION if "prompt" in chat else CHAT
    return await answered(request, model, chat, endpoint, lambda _: form)


async def tags(request: HttpRequest) -> Response:
    """List the models as ollama does; all of them are loaded."""
    models = service_of(request).models
    return JSONResponse({"models": [_described(model) for model in models]})


async def show(request: HttpRequest) -> Response:
    """Describe a model as ollama does."""
    model, body = await asked(request)
    if "name" in body:
        model = service_of(request).named(body["name"])
    info = {"general.architecture": "eva-local", "eva-local.context_length": model.n_ctx}
    empty = dict.fromkeys(("modelfile", "parameters", "template", "license"), "")
    able = ["completion", "tools", "thinking"]
    return JSONResponse({**empty, "model_info": info, "capabilities": able, **_described(model)})


async def version(_request: HttpRequest) -> Response:
    """Say which version of ollama's protocol is spoken."""
    return JSONResponse({"version": _VERSION})


def _function(call: _Call) -> _Named:
    return {**call["function"], "arguments": json.loads(call["function"]["arguments"])}


def _end(answer: Answer) -> Body:
    """Return what the end of an answer tells: why, how much, and how long, in nanoseconds."""
    # ollama has no reason of its own for calls.
    reason = "stop" if answer.finish_reason == "tool_calls" else answer.finish_reason
    body: Body = {"done": True, "done_reason": reason}
    if (usage := answer.usage) is not None:
        first, whole = int(usage.first_seconds * 1e9), int(usage.seconds * 1e9)
        body |= {"total_duration": whole, "load_duration": 0, "prompt_eval_count": answer.n_read}
        body |= {"prompt_eval_duration": first, "eval_duration": whole - first}
        body["eval_count"] = usage.steps
    return body


def _described(model: ServedModel) -> Body:
    empty = dict.fromkeys(("parent_model", "parameter_size", "quantization_level"), "")
    details = {**empty, "format": "gguf", "family": "eva-local", "families": list(model.members)}
    head: Body = {"name": model.name, "model": model.name, "modified_at": _time(model.created)}
    digest = sha256(model.name.encode()).hexdigest()
    return {**head, "size": 0, "digest": digest, "details": details}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
