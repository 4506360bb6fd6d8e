"""The chat page in a real browser, before a server that speaks the agreed contract."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from batches import fake_ensemble, fake_spec
from browser import CONTRAST, HOSTILE, Browser
from servers import serving
from traces import LONG, MEMBERS, TEXT, made_steps, pieces, thinking_steps
from waiting import PATIENCE_S, step_gate, until

from eva_local.openai.answer import Answer, Letterhead
from eva_local.openai.request import CHAT
from eva_local.openai.shapes import AnswerRequest, StreamOptions
from eva_local.pages.frame import shipped
from eva_local.server.app import chat_page
from eva_local.server.guard import problem
from eva_local.types import Candidate, Step, Trace

IDS = ("trio", *(f"trio/{name}" for name in MEMBERS))
MESSAGES = [{"role": "user", "content": "the unbelievable"}]
TOKENS = ".turn:last-child .token"


def members_of(name: str) -> Sequence[str]:
    return (name.partition("/")[2],) if "/" in name else MEMBERS


def model_of(name: str) -> dict[str, object]:
    space = None if "/" in name else "pivot"
    return {"id": name, "members": members_of(name), "space": space, "max_model_len": 400}


@dataclass
class Server:
    """What the next answers are, and what was asked; `gate` holds an answer at `pause`."""

    url: str = ""
    steps: Sequence[Step] = ()
    # What single models answer otherwise.
    others: dict[str, Sequence[Step]] = field(default_factory=dict)
    pause: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    status: int = 200
    message: str = ""
    key: str = ""
    loading: bool = False
    trouble: str = ""
    ids: Sequence[str] = IDS
    # The one model that has no place.
    refused: str = ""
    asked: list[dict[str, object]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    server: _Http

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        told = self.server.told
        told.paths.append(self.path)
        if self.path == "/":
            page = chat_page()
            self._send(200, page.body, page.headers)
        elif self.path == "/v1/models" and self._may():
            data = [model_of(name) for name in told.ids]
            body = problem("loading") if told.loading else {"object": "list", "data": data}
            self._send(503 if told.loading else 200, json.dumps(body).encode())

    def do_POST(self) -> None:
        told = self.server.told
        told.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may():
            return
        told.asked.append(body)
        status = 503 if body["model"] == told.refused else told.status
        if status != 200:
            again = {"Retry-After": "2"} if status == 503 else {}
            self._send(status, json.dumps(problem(told.message)).encode(), again)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._stream(body["model"])
        except ConnectionError:
            told.left.set()

    def _stream(self, model: str) -> None:
        told = self.server.told
        asked = AnswerRequest(trace=True, stream_options=StreamOptions(include_usage=True))
        head = Letterhead(CHAT, "x", 0, model, asked)
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        answer = Answer()
        for number, step in enumerate(told.others.get(model, told.steps)):
            if number == told.pause:
                self._wait()
            if told.trouble:
                if told.trouble != "break":
                    self._event(problem(told.trouble))
                return
            *_, part = head.parts(0, answer, answer.push(step))
            self._event(part)
        self._event(head.last([answer]))
        self.wfile.write(b"data: [DONE]\n\n")

    def _wait(self) -> None:
        """Say keep-alive comments until the test goes on, or the client leaves."""
        while not self.server.told.gate.wait(0.02):
            self.wfile.write(b": still here\n\n")

    def _event(self, data: object) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _may(self) -> bool:
        key = self.server.told.key
        if not key or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._send(401, json.dumps(problem("an API key is needed")).encode())
        return False

    def _send(self, status: int, body: bytes, headers: object = ()) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, told: Server) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told = told
        told.url = f"http://127.0.0.1:{self.server_address[1]}/"


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server(steps=made_steps(pieces(TEXT)))
    with _Http(told) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield told
        told.gate.set()
        http.shutdown()
        thread.join()


Opener = Callable[..., Browser]


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Opener]:
    """Return a function that opens the page, its list of models there, and returns the browser."""

    def show(*, models: bool = True, view: str = "tokens", **how: object) -> Browser:
        browser.open(server.url, **how)
        if models:
            browser.wait("document.getElementById('model').value")
        browser.run(f"document.getElementById('as-{view}').click()")
        return browser

    yield show
    browser.run("try { sessionStorage.clear(); } catch {}")
    browser.open("about:blank")


def ask(seen: Browser, words: str = "Why is the sea salty?", *, done: bool = True) -> None:
    turns = seen.run("document.querySelectorAll('.turn').length")
    seen.point("#words", click=True)
    seen.type(words)
    seen.press("Enter")
    seen.wait(f"document.querySelectorAll('.turn').length === {turns + 2}")
    if done:
        finished(seen)


def finished(seen: Browser) -> None:
    seen.wait("!document.getElementById('send').hidden && !document.querySelector('.running')")
    seen.settle()


def text(seen: Browser, selector: str) -> str:
    return str(seen.run(f"document.querySelector({json.dumps(selector)}).innerText"))


def answer(seen: Browser) -> str:
    return str(seen.run("document.querySelector('.turn:last-child .text').textContent"))


def test_the_policy_names_the_sources_of_the_page() -> None:
    page = chat_page()
    policy = page.headers["Content-Security-Policy"]
    html = page.body.decode()
    ours = html
    for name in ("vendor/marked.umd.js", "vendor/highlight.min.js"):
        assert ours.count(shipped(f"server/{name}")) == 1
        ours = ours.replace(shipped(f"server/{name}"), "")
    for tag in ("style", "script"):
        (source,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "@@" not in ours
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in ours
    assert not re.search(r"(?:src|href|action)=[\"'](?!data:)", ours)


def test_the_page_loads_nothing_but_its_server_s_answers(page, server) -> None:
    seen = page()
    ask(seen)
    assert set(server.paths) == {"/", "/v1/models", "/v1/chat/completions"}
    asked = [url for url in seen.requests() if not url.startswith("data:")]
    assert all(url.startswith(server.url) for url in asked)
    assert seen.complaints() == []
    seen.run(
        "new Image().src = 'http://127.0.0.1:9/x.png'; fetch('http://127.0.0.1:9/').catch(x => x);"
    )
    refused = seen.hear("Content Security Policy", 2)
    assert "img-src" in refused
    assert "connect-src" in refused


def test_markup_is_refused_by_the_browser_itself(page) -> None:
    seen = page()
    refused = "(() => { try { document.body.innerHTML = 'x'; } catch (e) { return e.name; } })()"
    assert seen.run(refused) == "TypeError"


def test_the_picker_offers_ensembles_and_members_alone(page, server) -> None:
    seen = page()
    offered = seen.run("[...document.querySelectorAll('#model option')].map(o => o.value)")
    assert tuple(offered) == IDS
    names = text(seen, "#model")
    assert "trio (3 members together)" in names
    assert f"trio/{MEMBERS[1]} alone" in names
    assert all(name in text(seen, "#cast") for name in MEMBERS)
    seen.run(
        f"const m = document.getElementById('model'); m.value = 'trio/{MEMBERS[1]}';"
        "m.dispatchEvent(new Event('change'))"
    )
    assert text(seen, "#cast").split() == [MEMBERS[1]]
    ask(seen)
    assert server.asked[0]["model"] == f"trio/{MEMBERS[1]}"
    assert text(seen, ".turn:last-child h2") == f"trio/{MEMBERS[1]}"


def test_an_answer_token_by_token(page, server) -> None:
    server.pause = 20
    seen = page()
    ask(seen, done=False)
    seen.wait(f"document.querySelectorAll({json.dumps(TOKENS)}).length === 20")
    shown = "".join(step.text for step in server.steps[:20])
    assert answer(seen) == shown
    assert seen.run("document.getElementById('send').hidden")
    seen.wait("document.querySelector('.turn:last-child .legend .much')")
    server.gate.set()
    finished(seen)
    assert answer(seen) == TEXT
    assert server.asked == [
        {
            "model": "trio",
            "messages": [{"role": "user", "content": "Why is the sea salty?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "trace": True,
        }
    ]
    number = f"[...document.querySelectorAll({json.dumps(TOKENS)})]"
    colours = seen.run(f"{number}.map(t => getComputedStyle(t).backgroundColor)")
    carriers = [step.trace.carrier for step in server.steps]
    assert len(set(colours)) == len(set(zip(colours, carriers, strict=True))) == len(MEMBERS)
    dotted = seen.run(f"{number}.map(t => getComputedStyle(t).borderBottomStyle === 'dotted')")
    assert dotted == [not all(step.stayed) for step in server.steps]
    told = [step for step in server.steps if step.piece]
    filtered = sum(not all(step.stayed) for step in told)
    legend = text(seen, ".turn:last-child .legend")
    assert f"{filtered} tokens with a filtered vote" in legend
    for name in MEMBERS:
        share = 100 * sum(step.trace.carrier == name for step in told) / len(told)
        assert re.search(rf"{re.escape(name)}\s{share:.{0 if share >= 9.95 else 1}f}%", legend)
    assert f"{len(told)} tokens" in text(seen, ".turn:last-child .facts")
    assert seen.complaints() == []


def test_a_thought_is_folded_and_dimmed_and_asked_for_by_a_switch(page, server) -> None:
    server.steps = thinking_steps("Let me see.", "It is salt.")
    n_thought = server.steps[-1].usage.reasoning_steps
    server.pause = 2
    seen = page()
    seen.point("#fold", click=True)
    assert seen.run("[...document.getElementById('thinking').options].map(o => o.value)") == [
        *("auto", "off", "on", "apart")
    ]
    seen.run("document.getElementById('thinking').value = 'on'")
    ask(seen, done=False)
    seen.wait("document.querySelectorAll('details.thought .token').length === 2")
    seen.settle()
    assert text(seen, "details.thought summary") == "Thinking… 2 tokens"
    assert not seen.run("document.querySelector('details.thought').open")
    server.gate.set()
    finished(seen)
    assert text(seen, "details.thought summary") == f"Thought, {n_thought} tokens"
    assert seen.run("document.querySelector('.turn > .text').textContent") == "It is salt."
    seen.point("details.thought summary", click=True)
    box = "document.querySelector('details.thought .text')"
    assert seen.run(f"{box}.textContent") == "Let me see."
    assert seen.run(f"getComputedStyle({box}).opacity") < "1"
    # Keys go from token to token within it, and a token's card is there.
    seen.point("details.thought .token", click=True)
    seen.run(f"{box}.focus()")
    seen.press("End")
    assert current(seen) == n_thought - 1
    seen.press("ArrowRight")
    assert current(seen) == n_thought - 1
    assert "All together" in text(seen, "#card")
    # The next turn says nothing of it.
    seen.run("document.getElementById('thinking').value = 'auto'")
    ask(seen, "And then?")
    assert [asked.get("thinking") for asked in server.asked] == ["on", None]
    assert server.asked[1]["messages"] == [
        {"role": "user", "content": "Why is the sea salty?"},
        {"role": "assistant", "content": "It is salt."},
        {"role": "user", "content": "And then?"},
    ]
    assert seen.complaints() == []


def test_an_answer_that_ends_in_its_thought_says_so(page, server) -> None:
    *steps, _ = (s for s in thinking_steps("Let me see.", "x") if s.reasoning is not None)
    server.steps = [*steps[:-1], replace(steps[-1], finish_reason="length")]
    seen = page()
    ask(seen)
    assert "Cut off while thinking: max tokens" in text(seen, ".turn:last-child .note")
    assert text(seen, "details.thought summary") == f"Thought, {len(steps)} tokens"
    # There is nothing to copy.
    assert seen.run("document.querySelector('.turn:last-child .copy').hidden")


def test_the_card_shows_what_each_member_proposed(page, server) -> None:
    seen = page()
    ask(seen)
    number = next(i for i, step in enumerate(server.steps) if not all(step.stayed))
    step = server.steps[number]
    seen.point(f"{TOKENS}:nth-child({number + 1})")
    card = text(seen, "#card")
    assert f"token {number + 1}" in card
    assert f"carried by {step.trace.carrier}" in card
    assert "All together" in card
    for ballot in step.trace.ballots:
        assert ballot.member in card
        assert (f"weight {ballot.weight:.2f}" if ballot.stayed else "filtered") in card
        assert f"{100 * ballot.top[0].probability:.0f}%" in card
    assert "its first choice is in no other member's top 3" in card
    chosen = seen.run("document.querySelectorAll('#card .candidate.chosen').length")
    assert chosen == 1 + sum(
        any(one.piece == step.piece for one in ballot.top) for ballot in step.trace.ballots
    )
    seen.point("header h1")
    assert seen.run("document.getElementById('card').hidden")
    seen.point(f"{TOKENS}:nth-child(7)", click=True)
    seen.point(f"{TOKENS}:nth-child(9)")
    assert "token 9" in text(seen, "#card")
    seen.point("header h1")
    assert "token 7" in text(seen, "#card")
    seen.press("Escape")
    assert seen.run("document.getElementById('card').hidden")


def current(seen: Browser) -> int:
    return int(seen.run("document.querySelector('.token.current')?.dataset.index ?? -1"))


def test_keys_reach_everything(page, server) -> None:
    seen = page()
    assert seen.run("document.activeElement.id") == "words"
    seen.type("first line")
    seen.press("Enter", shift=True)
    seen.type("second line")
    seen.press("Enter")
    finished(seen)
    assert server.asked[0]["messages"] == [{"role": "user", "content": "first line\nsecond line"}]
    seen.run("document.querySelector('#new').focus()")
    reached = []
    for _ in range(9):
        seen.press("Tab")
        reached.append(seen.run("document.activeElement.className || document.activeElement.id"))
        if reached[-1] == "text":
            break
    assert reached[-1] == "text"
    seen.press("ArrowRight")
    assert current(seen) == 0
    for key, at in (("ArrowRight", 1), ("End", len(server.steps) - 1), ("ArrowLeft", None)):
        seen.press(key)
        assert at is None or current(seen) == at
    seen.press("Home")
    seen.press("ArrowLeft")
    assert current(seen) == 0
    seen.press("ArrowDown")
    below = current(seen)
    assert below > 5
    seen.press("ArrowUp")
    assert 0 <= current(seen) < 5
    seen.press("Home")
    first = server.steps[0]
    said = seen.run("document.getElementById('said').textContent")
    assert said.startswith(f"{first.text}, carried by {first.trace.carrier}")
    reached = []
    for _ in range(6):
        seen.press("Tab")
        at = "(n => n.className || n.id || n.tagName)(document.activeElement)"
        reached.append(seen.run(at))
    assert reached == ["SUMMARY", "look", "copy", "again", "close", "words"]


def test_settings_go_with_the_question(page, server) -> None:
    seen = page()
    assert seen.run("document.getElementById('settings').hidden")
    seen.point("#fold", click=True)
    for name, value in (("system", "Be brief."), ("temperature", "0.7"), ("max_tokens", "40")):
        seen.point(f"#{name}", click=True)
        seen.type(value)
    ask(seen, "Why?")
    asked = server.asked[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (asked["temperature"], asked["max_tokens"]) == (0.7, 40)
    assert "seed" not in asked
    seen.point("#seed", click=True)
    seen.type("-3")
    seen.point("#fold", click=True)
    seen.point("#words", click=True)
    seen.type("Once more?")
    seen.press("Enter")
    # What does not fit is shown, and nothing is sent.
    assert not seen.run("document.getElementById('settings').hidden")
    assert seen.run("document.activeElement.id") == "seed"
    assert len(server.asked) == 1
    assert seen.run("document.getElementById('words').value") == "Once more?"


def test_the_conversation_grows_and_begins_anew(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    seen = page()
    ask(seen, "What?")
    ask(seen, "Why?")
    assert server.asked[1]["messages"] == [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "Salt."},
        {"role": "user", "content": "Why?"},
    ]
    server.steps = made_steps(pieces("Rivers."))
    seen.point(".turn:last-child .again", click=True)
    seen.wait("document.querySelector('.turn:last-child .text').textContent === 'Rivers.'")
    finished(seen)
    assert server.asked[2] == server.asked[1]
    assert seen.run("document.querySelectorAll('.turn').length") == 4
    assert seen.run("document.querySelectorAll('.again').length") == 2
    seen.point("#new", click=True)
    assert seen.run("document.querySelectorAll('.turn').length") == 0
    assert seen.run("document.activeElement.id") == "words"
    ask(seen, "And now?")
    assert server.asked[3]["messages"] == [{"role": "user", "content": "And now?"}]


@pytest.mark.parametrize("how", ["button", "key", "new"])
def test_stopping_leaves_the_server_at_once(page, server, how) -> None:
    server.pause = 5
    seen = page()
    ask(seen, done=False)
    seen.wait(f"document.querySelectorAll({json.dumps(TOKENS)}).length === 5")
    if how == "key":
        seen.press("Escape")
    else:
        seen.point("#stop" if how == "button" else "#new", click=True)
    assert server.left.wait(10)
    finished(seen)
    if how != "new":
        assert "Stopped." in text(seen, ".turn:last-child .note")
        assert answer(seen) == "".join(step.text for step in server.steps[:5])
    server.pause = None
    ask(seen, "Go on.")
    assert answer(seen) == TEXT
    told = [message["role"] for message in server.asked[-1]["messages"]]
    assert told == (["user"] if how == "new" else ["user", "assistant", "user"])
    assert seen.complaints() == []


def test_copy_hands_out_the_exact_text(page, server) -> None:
    seen = page()
    seen.call(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    ask(seen)
    seen.point(".turn:last-child .copy", click=True)
    seen.wait("document.querySelector('.copy').textContent === 'Copied'")
    read = seen.call(
        "Runtime.evaluate",
        expression="navigator.clipboard.readText()",
        awaitPromise=True,
        returnByValue=True,
    )
    assert read["result"]["value"] == TEXT


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (
            503,
            "too many answers are asked for at this moment",
            "The server is busy: too many answers are asked for at this moment. Try again in 2 s.",
        ),
        (
            400,
            "temperature must be in [0, 100), not 200.",
            "The server refused the request: temperature must be in [0, 100), not 200.",
        ),
        (500, "", "The server failed (500)."),
    ],
)
def test_a_refusal_is_told_in_plain_words(page, server, status, message, words) -> None:
    server.status, server.message = status, message
    seen = page()
    ask(seen, "One?")
    assert text(seen, ".turn:last-child .note") == words
    assert text(seen, ".turn:last-child .again") == "Try again"
    server.status = 200
    seen.point(".turn:last-child .again", click=True)
    seen.wait("document.querySelector('.turn:last-child .token')")
    finished(seen)
    assert answer(seen) == TEXT
    assert not seen.run("document.querySelector('.turn:last-child .note').checkVisibility()")


def test_a_question_without_an_answer_is_not_asked_again_later(page, server) -> None:
    server.status = 503
    seen = page()
    ask(seen, "One?")
    server.status = 200
    ask(seen, "Two?")
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "Two?"}]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("break", "The connection ended early: the answer is not complete."),
        ("the models failed", "The server gave up: the models failed"),
    ],
)
def test_an_answer_that_breaks_off_keeps_what_was_written(page, server, trouble, words) -> None:
    server.pause = 4
    seen = page()
    ask(seen, done=False)
    seen.wait(f"document.querySelectorAll({json.dumps(TOKENS)}).length === 4")
    server.trouble = trouble
    server.gate.set()
    finished(seen)
    assert text(seen, ".turn:last-child .note") == words
    assert answer(seen) == "".join(step.text for step in server.steps[:4])
    assert text(seen, ".turn:last-child .again") == "Regenerate"


def test_a_server_that_is_gone_is_said_to_be(page, server, browser) -> None:
    seen = page()
    seen.call(
        "Network.emulateNetworkConditions",
        offline=True,
        latency=0,
        downloadThroughput=-1,
        uploadThroughput=-1,
    )
    try:
        ask(seen)
        assert "cannot be reached" in text(seen, ".turn:last-child .note")
    finally:
        seen.call(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
    seen.point(".turn:last-child .again", click=True)
    seen.wait("document.querySelector('.turn:last-child .token')")
    finished(seen)
    assert answer(seen) == TEXT


def test_an_answer_at_its_limit_says_so(page, server) -> None:
    cut = made_steps(pieces(TEXT))[:6]
    last = Step(cut[-1].piece, cut[-1].text, 0.5, cut[-1].stayed, "length", trace=cut[-1].trace)
    server.steps = [*cut[:-1], last]
    seen = page()
    ask(seen)
    assert "Cut off: max tokens" in text(seen, ".turn:last-child .note")


def test_a_key_is_asked_for_only_when_the_server_wants_one(page, server) -> None:
    seen = page()
    assert seen.run("document.getElementById('key').hidden")
    assert seen.run("sessionStorage.length") == 0
    server.key = "sesame"
    seen = page(models=False)
    seen.wait("document.getElementById('trouble').textContent")
    assert "wants its API key" in text(seen, "#trouble")
    assert seen.run("document.getElementById('send').disabled")
    assert seen.run("document.activeElement.id") == "secret"
    seen.type("wrong")
    seen.press("Enter")
    seen.wait("document.getElementById('trouble').textContent.includes('does not know')")
    assert seen.run("document.activeElement.id") == "secret"
    seen.type("sesame")
    seen.press("Enter")
    seen.wait("document.getElementById('model').value")
    assert seen.run("document.getElementById('key').hidden")
    assert not seen.run("document.getElementById('trouble').checkVisibility()")
    assert seen.run("Object.values(sessionStorage)") == ["sesame"]
    assert "sesame" not in seen.run("JSON.stringify(localStorage) + document.cookie")
    ask(seen)
    assert answer(seen) == TEXT
    server.key = "other"
    ask(seen, "And?")
    assert "does not know this API key" in text(seen, ".turn:last-child .note")
    assert seen.run("sessionStorage.length") == 0


def test_hostile_text_is_text(page, server) -> None:
    words = "".join(piece.decode("utf-8", "replace") for piece in HOSTILE)
    names = (words, *MEMBERS[1:])
    server.ids = (words.replace("/", ""), "b" * 300)
    server.steps = made_steps(HOSTILE, names)
    seen = page()
    ask(seen, words)
    for number in range(1, len(HOSTILE) + 2):
        seen.point(f"{TOKENS}:nth-child({number})")
    assert seen.run("typeof window.hacked") == "undefined"
    assert seen.run("document.images.length + document.scripts.length") == 1
    assert HOSTILE[0].decode() in answer(seen)
    assert server.asked[0]["messages"][0]["content"].startswith(HOSTILE[0].decode())
    assert "\u202e" not in seen.run("document.getElementById('turns').innerText")
    assert seen.run("document.documentElement.scrollWidth") <= 1280
    server.status, server.message = 400, words
    ask(seen, "Again?")
    assert HOSTILE[1].decode() in text(seen, ".turn:last-child .note")
    assert "\u202e" not in seen.run("document.getElementById('turns').innerText")
    assert seen.run("typeof window.hacked") == "undefined"


def test_of_two_thousand_tokens_none_is_drawn_anew(page, server) -> None:
    server.steps = made_steps((pieces(LONG) * 40)[:2000])
    server.pause = 1900
    seen = page()
    ask(seen, done=False)
    seen.wait(f"document.querySelectorAll({json.dumps(TOKENS)}).length === 1900")
    # What stands is never drawn anew: of 1900 tokens none is touched by the last hundred.
    seen.run(
        "window.touched = 0;"
        "new MutationObserver(l => l.forEach(m => { window.touched += m.removedNodes.length; }))"
        ".observe(document.querySelector('.turn:last-child .text'), {childList: true}); 1"
    )
    server.gate.set()
    finished(seen)
    assert seen.run(f"document.querySelectorAll({json.dumps(TOKENS)}).length") == 2001
    assert answer(seen) == "".join(step.text for step in server.steps)
    assert seen.run("window.touched") == 0
    end = "(t => t.scrollHeight - t.scrollTop - t.clientHeight)(document.getElementById('talk'))"
    assert seen.run(end) < 2
    for number in (3, 1500, 2000):
        seen.point(f"{TOKENS}:nth-child({number})")
        assert f"token {number}" in text(seen, "#card")


def test_the_end_stays_in_sight_until_the_reader_looks_elsewhere(page, server) -> None:
    server.steps = made_steps((pieces(LONG) * 40)[:1200])
    server.pause = 600
    seen = page()
    ask(seen, done=False)
    seen.wait(f"document.querySelectorAll({json.dumps(TOKENS)}).length === 600")
    below = "(t => t.scrollHeight - t.scrollTop - t.clientHeight)(document.getElementById('talk'))"
    seen.wait(f"{below} < 2")
    seen.run("document.getElementById('talk').scrollTop = 40")
    seen.wait("document.getElementById('talk').scrollTop === 40")
    server.gate.set()
    finished(seen)
    assert seen.run("document.getElementById('talk').scrollTop") == 40
    assert seen.run(below) > 600


def test_a_conversation_that_is_opened_stands_at_its_end(page, server) -> None:
    server.steps = made_steps((pieces(LONG) * 20)[:600])
    seen = page(view="text")
    ask(seen)
    below = "(t => t.scrollHeight - t.scrollTop - t.clientHeight)(document.getElementById('talk'))"
    reload(seen)
    seen.wait("document.querySelector('.turn:last-child .contest')?.hidden === false")
    seen.wait(f"{below} < 2")
    assert seen.run("document.getElementById('talk').scrollTop") > 100
    # So does one that is opened from the list.
    seen.point("#new", click=True)
    ask(seen, "And then?")
    seen.point("#chats li:last-child .go", click=True)
    seen.wait("document.querySelector('.said').textContent.startsWith('Why')")
    seen.wait(f"{below} < 2")


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_be_read(page, server, dark) -> None:
    server.status = 503
    seen = page(dark=dark)
    ratio, where = seen.run(CONTRAST)
    assert ratio >= 4.5, where
    ask(seen)
    server.status = 200
    ask(seen)
    seen.point("#fold", click=True)
    seen.point(f"{TOKENS}.filtered", click=True)
    ratio, where = seen.run(CONTRAST)
    assert ratio >= 4.5, where
    paper = seen.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(23, 24, 26)") == dark


def test_a_narrow_screen(page, server) -> None:
    server.ids = (*IDS, "an-ensemble-with-quite-a-long-name-that-does-not-fit")
    seen = page(size=(380, 800))
    ask(seen)
    assert seen.run("document.documentElement.scrollWidth") <= 380
    assert seen.run("document.getElementById('card').hidden")
    seen.tap(f"{TOKENS}:nth-child(3)")
    seen.wait("!document.getElementById('card').hidden")
    assert "token 3" in text(seen, "#card")
    box = seen.run(
        "(r => [r.top, r.bottom])(document.getElementById('card').getBoundingClientRect())"
    )
    composer = seen.run("document.getElementById('composer').getBoundingClientRect().top")
    token = seen.run("document.querySelector('.token.current').getBoundingClientRect().bottom")
    assert token <= box[0] < box[1] <= composer < 800
    assert seen.run("document.documentElement.scrollWidth") <= 380
    seen.tap("#close")
    seen.wait("document.getElementById('card').hidden")
    seen.point("#fold", click=True)
    assert seen.run("document.documentElement.scrollWidth") <= 380
    assert seen.run("document.getElementById('words').getBoundingClientRect().bottom") <= 800


def test_colours_and_width_can_be_switched(page) -> None:
    seen = page()
    ask(seen)
    seen.point("#fold", click=True)
    seen.point("#coloured", click=True)
    seen.point("#mono", click=True)
    style = f"getComputedStyle(document.querySelector({json.dumps(TOKENS)}))"
    assert seen.run(f"{style}.backgroundColor") == "rgba(0, 0, 0, 0)"
    assert "mono" in seen.run(f"{style}.fontFamily").lower()
    assert answer(seen) == TEXT


def test_a_server_that_still_loads_is_asked_again(page, server) -> None:
    server.loading = True
    seen = page(models=False)
    seen.wait("document.getElementById('trouble').textContent")
    assert text(seen, "#trouble") == "The server is still opening its models."
    assert seen.run("document.getElementById('send').disabled")
    server.loading = False
    seen.wait("document.getElementById('model').value")
    assert not seen.run("document.getElementById('trouble').checkVisibility()")
    assert not seen.run("document.getElementById('send').disabled")


# Conversations that stay.


def opened_list(seen: Browser) -> list[str]:
    return list(seen.run("[...document.querySelectorAll('#chats .go')].map(n => n.innerText)"))


def reload(seen: Browser) -> None:
    """Load the page anew, as a user does: at the address where it is."""
    seen.settle()
    at = seen.run("location.href")
    seen.open("about:blank")
    seen.open(at)
    seen.wait("document.getElementById('model').value")


def said(seen: Browser) -> list[str]:
    return list(
        seen.run(
            "[...document.querySelectorAll('.said, .turn > .prose')]"
            ".map(n => n.textContent.trimEnd())"
        )
    )


def stored(seen: Browser, work: str) -> object:
    """Run `work` on the browser's store of conversations, `chats`."""
    script = (
        "new Promise((done, failed) => { const asked = indexedDB.open('eva-local', 1);"
        "asked.onsuccess = () => { const db = asked.result;"
        "const deal = db.transaction(['chats', 'traces'], 'readwrite');"
        "const chats = deal.objectStore('chats'), traces = deal.objectStore('traces'); let told;"
        f"{work}; deal.oncomplete = () => {{ db.close(); done(told?.result); }};"
        "deal.onabort = () => failed(deal.error); }; })"
    )
    answer = seen.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in answer, answer
    return answer["result"].get("value")


def test_a_reload_goes_on_where_one_was(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    seen = page(view="text")
    seen.wait("document.getElementById('none').innerText.includes('appear here')")
    seen.point("#fold", click=True)
    seen.point("#system", click=True)
    seen.type("Be brief.")
    ask(seen, "What?")
    ask(seen, "Why?")
    seen.type("half a thought")
    reload(seen)
    seen.wait("document.querySelectorAll('.turn').length === 4")
    assert said(seen) == ["What?", "Salt.", "Why?", "Salt."]
    assert opened_list(seen) == ["What?"]
    assert seen.run("document.getElementById('words').value") == "half a thought"
    assert seen.run("document.getElementById('system').value") == "Be brief."
    assert "2 tokens" in text(seen, ".turn:last-child .facts")
    assert MEMBERS[0] in text(seen, ".turn:last-child .legend")
    # What is known of the tokens is there, too.
    seen.run("document.getElementById('as-tokens').click()")
    seen.wait(f"document.querySelectorAll({json.dumps(TOKENS)}).length === 3")
    seen.point(f"{TOKENS}:nth-child(1)")
    assert f"carried by {server.steps[0].trace.carrier}" in text(seen, "#card")
    seen.run("document.getElementById('words').value = ''")
    ask(seen, "And?")
    assert [each["content"] for each in server.asked[-1]["messages"]] == [
        *("Be brief.", "What?", "Salt.", "Why?", "Salt.", "And?")
    ]
    # Another address of the page begins anew, with the list beside it.
    seen.run("history.replaceState(null, '', '/')")
    reload(seen)
    seen.wait("document.querySelector('#chats .go')")
    assert seen.run("document.querySelectorAll('.turn').length") == 0
    seen.point("#chats .go", click=True)
    assert seen.run("document.querySelectorAll('.turn').length") == 6
    assert seen.complaints() == []


def test_an_answer_that_a_reload_cuts_off_is_gone_on_with(page, server) -> None:
    server.steps = made_steps(pieces("Salt comes from the land."))
    server.pause = 3
    seen = page(view="text")
    ask(seen, "Why?", done=False)
    begun = "".join(step.text for step in server.steps[:3])
    seen.wait(f"document.querySelector('.turn > .prose').textContent === {json.dumps(begun)}")
    reload(seen)
    seen.wait("document.querySelector('.turn .prose')")
    seen.settle()
    assert said(seen) == ["Why?", begun]
    assert "Interrupted" in text(seen, ".turn:last-child .note")
    server.pause, server.steps = None, made_steps(pieces(" the land."))
    seen.point(".goon", click=True)
    seen.wait("document.querySelector('.turn > .prose').textContent.endsWith('land.')")
    finished(seen)
    assert said(seen) == ["Why?", f"{begun} the land."]
    assert server.asked[-1]["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": begun},
    ]
    seen.run("document.getElementById('as-tokens').click()")
    seen.settle()
    assert answer(seen) == f"{begun} the land."
    assert seen.run(f"document.querySelectorAll({json.dumps(TOKENS)}).length") == 7
    # Where nothing is known of the tokens any more, the text is there.
    stored(seen, "traces.clear()")
    reload(seen)
    seen.wait(
        f"document.querySelector('.turn .text')?.textContent === {json.dumps(begun)} + ' the land.'"
    )
    assert seen.complaints() == []


def test_conversations_are_listed_renamed_deleted_and_taken_back(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    seen = page(view="text")
    ask(seen, "First?")
    seen.point("#new", click=True)
    ask(seen, "Second?")
    assert opened_list(seen) == ["Second?", "First?"]
    seen.point("#chats li:last-child .more", click=True)
    seen.point("#chats .rename", click=True)
    seen.type("Sea <b>water</b>")
    seen.press("Enter")
    assert opened_list(seen) == ["Second?", "Sea <b>water</b>"]
    reload(seen)
    seen.wait("document.querySelectorAll('#chats li').length === 2")
    assert opened_list(seen) == ["Second?", "Sea <b>water</b>"]
    seen.point("#chats li:first-child .more", click=True)
    seen.point("#chats .delete", click=True)
    assert opened_list(seen) == ["Sea <b>water</b>"]
    assert seen.run("document.querySelectorAll('.turn').length") == 0
    assert "Deleted “Second?”." in text(seen, "#toast")
    assert seen.run("document.activeElement.id") == "undo"
    seen.press("Enter")
    assert opened_list(seen) == ["Second?", "Sea <b>water</b>"]
    assert said(seen) == ["Second?", "Salt."]
    reload(seen)
    seen.wait("document.querySelectorAll('#chats li').length === 2")
    seen.point("#chats li:first-child .more", click=True)
    seen.point("#chats .delete", click=True)
    reload(seen)
    seen.wait("document.querySelectorAll('#chats li').length === 1")
    assert opened_list(seen) == ["Sea <b>water</b>"]
    assert seen.complaints() == []


def test_search_finds_titles_and_texts(page, server) -> None:
    server.steps = made_steps(pieces("Salt from rivers."))
    seen = page(view="text")
    ask(seen, "Why is the sea salty?")
    seen.point("#new", click=True)
    server.steps = made_steps(pieces("It is blue."))
    ask(seen, "What of the sky?")
    seen.run("document.querySelector('#new').focus()")
    seen.press("/")
    assert seen.run("document.activeElement.id") == "find"
    seen.type("RIVERS")
    assert opened_list(seen)[0].split("\n")[0] == "Why is the sea salty?"
    assert "Salt from rivers." in opened_list(seen)[0]
    assert len(opened_list(seen)) == 1
    seen.press("Escape")
    assert len(opened_list(seen)) == 2
    seen.type("nowhere")
    assert text(seen, "#none") == "Nothing found."
    # In a text, a stroke is a stroke; Ctrl-K goes to the search from everywhere.
    seen.point("#words", click=True)
    seen.press("/")
    assert seen.run("document.activeElement.id") == "words"
    seen.call(
        *("Input.dispatchKeyEvent",), type="keyDown", key="k", windowsVirtualKeyCode=75, modifiers=2
    )
    assert seen.run("document.activeElement.id") == "find"


def test_conversations_go_into_a_file_and_come_back(page, server, tmp_path) -> None:
    server.steps = made_steps(pieces(TEXT))
    seen = page(view="text")
    seen.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    ask(seen, "Why?")
    seen.point(".turn:last-child .again", click=True)
    finished(seen)
    seen.point("#new", click=True)
    ask(seen, "Other?")
    seen.point("#export", click=True)
    whole = tmp_path / "eva-local-chats.json"
    until(lambda: whole.exists() and whole.stat().st_size > 0)
    kept = json.loads(whole.read_text())
    assert [len(each["messages"]) for each in kept["chats"]] == [2, 3]
    assert [len(each["traces"]) for each in kept["chats"]] == [1, 2]
    seen.point("#chats li:last-child .more", click=True)
    seen.point("#chats .markdown", click=True)
    until(lambda: (tmp_path / "Why.md").exists() and (tmp_path / "Why.md").stat().st_size > 0)
    assert (tmp_path / "Why.md").read_text() == f"# Why?\n\n**You**\n\nWhy?\n\n**trio**\n\n{TEXT}\n"
    # Another browser, as it were.
    stored(seen, "chats.clear(); traces.clear()")
    seen.run("history.replaceState(null, '', '/')")
    reload(seen)
    assert opened_list(seen) == []
    for _ in range(2):
        give(seen, whole)
        assert text(seen, "#toast-words") == "Imported 2 conversations."
        assert opened_list(seen) == ["Other?", "Why?"]
    reload(seen)
    seen.wait("document.querySelectorAll('#chats li').length === 2")
    seen.point("#chats li:last-child .go", click=True)
    assert text(seen, ".asked .said") == "Why?"
    assert text(seen, ".turn:last-child .branches").split() == ["‹", "2/2", "›"]
    seen.run("document.getElementById('as-tokens').click()")
    seen.wait("document.querySelector('.token')")
    seen.settle()
    assert answer(seen) == TEXT
    (tmp_path / "again").mkdir()
    seen.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "again"))
    seen.point("#export", click=True)
    again = tmp_path / "again" / whole.name
    until(lambda: again.exists() and again.stat().st_size > 0)
    assert json.loads(again.read_text())["chats"] == kept["chats"]
    # What is no such file, or was tampered with, changes nothing.
    listed = {**kept["chats"][0], "messages": []}
    for words, heard in (
        ("{", "is no file of conversations"),
        ("[]", "is no file of conversations"),
        (json.dumps({**kept, "chats": [{"id": "x"}, None, listed]}), "3 others cannot be read"),
    ):
        (tmp_path / "bad.json").write_text(words)
        give(seen, tmp_path / "bad.json")
        assert heard in text(seen, "#toast-words")
    assert opened_list(seen) == ["Other?", "Why?"]
    assert seen.complaints() == []


def give(seen: Browser, path: Path) -> None:
    seen.run("document.getElementById('toast-words').textContent = ''")
    root = seen.call("DOM.getDocument")["root"]["nodeId"]
    node = seen.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    seen.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    seen.wait("document.getElementById('toast-words').textContent")
    seen.settle()


def test_damage_is_said_once_and_left_alone(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    seen = page(view="text")
    ask(seen, "Why?")
    bad = "{id: 'zz', messages: 3}"
    stored(seen, f"chats.put({bad}); traces.put({{id: 'zz', steps: 'x'}})")
    # A trace that is none is not shown, and takes nothing with it.
    stored(
        seen,
        "traces.openCursor().onsuccess = ({target: {result: at}}) => {"
        "if (!at) return; at.update({...at.value, steps: [{shown: 3}]}); at.continue(); }",
    )
    reload(seen)
    seen.wait("document.getElementById('unkept').textContent")
    assert "1 conversation of this browser cannot be read" in text(seen, "#unkept")
    assert said(seen) == ["Why?", "Salt."]
    seen.run("document.getElementById('as-tokens').click()")
    seen.settle()
    assert answer(seen) == "Salt."
    assert stored(seen, "told = chats.get('zz')") == {"id": "zz", "messages": 3}
    seen.run("localStorage.setItem('eva-local', '{')")
    reload(seen)
    assert seen.complaints() == []


@pytest.mark.parametrize("how", ["quota", "closed"])
def test_a_full_or_closed_store_loses_nothing_on_screen(page, server, how) -> None:
    server.steps = made_steps(pieces("Salt."))
    seen = page(view="text")
    if how == "quota":
        seen.call("Storage.overrideQuotaForOrigin", origin=server.url, quotaSize=1)
    else:
        source = (
            "const no = () => { throw new DOMException('no', 'SecurityError'); };"
            "IDBFactory.prototype.open = no;"
            "for (const name of ['localStorage', 'sessionStorage'])"
            " Object.defineProperty(window, name, {get: no, configurable: true});"
        )
        added = seen.call("Page.addScriptToEvaluateOnNewDocument", source=source)
        try:
            reload(seen)
        finally:
            seen.call("Page.removeScriptToEvaluateOnNewDocument", **added)
    ask(seen, "One?")
    seen.wait("document.getElementById('unkept').textContent")
    why = "its room is full" if how == "quota" else "its storage cannot be used"
    assert why in text(seen, "#unkept")
    seen.run("document.getElementById('unkept').textContent = 'x'")
    ask(seen, "Two?")
    assert said(seen) == ["One?", "Salt.", "Two?", "Salt."]
    seen.point("#new", click=True)
    ask(seen, "Three?")
    seen.point("#chats li:last-child .go", click=True)
    assert said(seen) == ["One?", "Salt.", "Two?", "Salt."]
    assert text(seen, "#unkept") == "x"


def test_what_another_tab_kept_stays(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    seen = page(view="text")
    ask(seen, "One?")
    # What another tab keeps: the same conversation with another branch.
    stored(
        seen,
        "chats.openCursor().onsuccess = ({target: {result: at}}) => { if (!at) return;"
        "const chat = at.value; const first = Object.values(chat.messages)[0];"
        "const id = '0123456789abcdef'; chat.messages[id] = {...first, id, content: 'Else?',"
        "at: first.at - 1}; at.update(chat); at.continue(); }",
    )
    ask(seen, "Two?")
    reload(seen)
    seen.wait("document.querySelectorAll('.turn').length === 4")
    assert said(seen) == ["One?", "Salt.", "Two?", "Salt."]
    assert text(seen, ".asked .branches").split() == ["‹", "2/2", "›"]


def test_what_is_deleted_while_it_is_written_stays_deleted(page, server) -> None:
    server.pause = 4
    seen = page(view="text")
    ask(seen, "Why?", done=False)
    seen.wait("document.querySelector('.turn > .prose').textContent")
    seen.point("#chats .more", click=True)
    seen.point("#chats .delete", click=True)
    assert server.left.wait(10)
    seen.settle()
    reload(seen)
    seen.wait("document.getElementById('none').innerText.includes('appear here')")
    assert opened_list(seen) == []


# Text.


FENCED = (
    "Look  here:\n\n```python\ndef f(x):\n\treturn  x &lt; 2  # <b>\n\n    y = '\\n'\n```\n\nSo."
)
SOURCE = "def f(x):\n\treturn  x &lt; 2  # <b>\n\n    y = '\\n'"


def clipboard(seen: Browser) -> object:
    read = seen.call(
        "Runtime.evaluate",
        expression="navigator.clipboard.readText()",
        awaitPromise=True,
        returnByValue=True,
    )
    return read["result"]["value"]


def test_code_is_shown_and_copied_exactly(page, server) -> None:
    server.steps = made_steps(pieces(FENCED))
    seen = page(view="text")
    seen.call(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    ask(seen)
    assert seen.run("document.querySelector('.code code').textContent") == SOURCE
    assert text(seen, ".code code") == SOURCE
    assert text(seen, ".code-head span") == "python"
    assert text(seen, ".hl-keyword") == "def"
    assert "mono" in seen.run("getComputedStyle(document.querySelector('.code code')).fontFamily")
    assert text(seen, ".prose p") == "Look  here:"
    assert not seen.run("document.querySelector('.turn > .text').checkVisibility()")
    seen.point(".copy-code", click=True)
    seen.wait("document.querySelector('.copy-code').textContent === 'Copied'")
    assert clipboard(seen) == SOURCE
    seen.point(".copy", click=True)
    seen.wait("document.querySelector('.copy').textContent === 'Copied'")
    assert clipboard(seen) == FENCED
    seen.run("document.getElementById('as-tokens').click()")
    seen.settle()
    assert not seen.run("document.querySelector('.prose').checkVisibility()")
    assert answer(seen) == FENCED


MARKDOWN = """# One

Some *thin* and **thick** `a  b` &amp; [there](https://example.org/) <https://example.org/b>

- a
- b
  1. c

| x | y |
|:--|--:|
| 1 | 2 |

> quoted
"""


def test_markdown_is_drawn_as_it_comes(page, server) -> None:
    server.steps = made_steps(pieces(MARKDOWN))
    server.pause = len(server.steps) - 8
    seen = page(view="text")
    ask(seen, done=False)
    seen.wait("document.querySelector('.prose table td')")
    seen.run("document.querySelector('.prose h3').id = 'mine'; 1")
    server.gate.set()
    finished(seen)
    # What stands is not drawn anew.
    assert seen.run("document.querySelector('.prose h3').id") == "mine"
    tags = ["h3", "em", "strong", "code", "ul", "ol", "table", "th", "td", "blockquote"]
    assert [seen.run(f"!!document.querySelector('.prose {tag}')") for tag in tags] == [True] * 10
    assert "thick a  b & there https://example.org/b" in text(seen, ".prose p")
    way = "document.querySelector('.prose a')"
    assert seen.run(f"[{way}.href, {way}.rel, {way}.target]") == [
        *("https://example.org/", "noopener noreferrer nofollow", "_blank")
    ]
    assert seen.run("document.querySelector('.prose td:last-child').style.textAlign") == "right"


ATTACKS = [
    '<img src=x onerror="window.hacked = 1">',
    "[x](javascript:window.hacked=1)",
    "[x](JaVaScRiPt&colon;window.hacked=1)",
    "[x](java\\nscript:window.hacked=1)",
    "[x]( data:text/html,<script>window.hacked=1</script> )",
    "[x](//evil.example/) [y](vbscript:x) [z](file:///etc/passwd)",
    "<javascript:window.hacked=1>",
    "![x](http://127.0.0.1:9/x.png)",
    "![x](javascript:window.hacked=1)",
    "<script>window.hacked = 1</script>",
    "<svg onload=window.hacked=1><style>*{display:none}</style>",
    "```html\n<img src=x onerror=window.hacked=1></code><script>window.hacked=1</script>\n```",
    '```x"onload="window.hacked=1\n</code>\n```',
    "| <img src=x onerror=window.hacked=1> |\n|--|\n| <iframe src=javascript:1> |",
    '[x]: javascript:window.hacked=1 "t"\n\n[x] [x][x]',
    "&lt;img src=x onerror=window.hacked=1&gt; &#60;script&#62; &#x202e;x",
    "\u202eevil\u202c `\u202e`",
]
DEEP = ["> " * 3000 + "x", "- " * 3000 + "x", "*" * 3000 + "x", "[" * 3000 + "x", "<a>" * 3000]


def test_a_hostile_answer_runs_and_loads_nothing(page, server) -> None:
    server.steps = made_steps([f"{each}\n\n".encode() for each in ATTACKS])
    seen = page(view="text")
    ask(seen)
    assert seen.run("typeof window.hacked") == "undefined"
    foreign = "img, script, style, iframe, svg, [onload], [onerror], [style*=url]"
    assert seen.run(f"document.querySelectorAll('.turn :is({foreign})').length") == 0
    ways = seen.run("[...document.querySelectorAll('.turn a')].map(a => a.href)")
    assert ways == ["http://127.0.0.1:9/x.png"]
    shown = text(seen, ".turn:last-child .prose")
    for words in (ATTACKS[0], ATTACKS[1], ATTACKS[9], "<iframe src=javascript:1>"):
        assert words in shown
    assert "\u202e" not in shown
    for words in DEEP:
        server.steps = made_steps([words.encode()])
        ask(seen)
        assert text(seen, ".turn:last-child .prose").endswith("x" if "x" in words else ">")
    assert set(server.paths) == {"/", "/v1/models", "/v1/chat/completions"}
    assert all(url.startswith((server.url, "data:")) for url in seen.requests())
    assert seen.complaints() == []


def test_vendored_files_are_those_that_are_named() -> None:
    told = shipped("server/vendor/README.md")
    for name in ("marked.umd.js", "highlight.min.js"):
        data = shipped(f"server/vendor/{name}").encode()
        assert hashlib.sha256(data).hexdigest() in told
        assert "opyright" in shipped(f"server/vendor/{name.split('.')[0]}.LICENSE")


# Branches.


def test_a_question_is_edited_and_both_branches_stay(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    seen = page(view="text")
    ask(seen, "What?")
    ask(seen, "Why?")
    seen.point(".edit", click=True)
    assert seen.run("document.activeElement.value") == "What?"
    seen.press("Escape")
    assert said(seen) == ["What?", "Salt.", "Why?", "Salt."]
    assert seen.run("document.activeElement.className") == "edit"
    seen.press("Enter")
    seen.run("document.activeElement.select()")
    server.steps = made_steps(pieces("Blue."))
    seen.type("Which colour?")
    seen.press("Enter")
    finished(seen)
    assert said(seen) == ["Which colour?", "Blue."]
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "Which colour?"}]
    assert text(seen, ".asked .branches").split() == ["‹", "2/2", "›"]
    seen.point(".asked .branches button", click=True)
    assert said(seen) == ["What?", "Salt.", "Why?", "Salt."]
    assert seen.run("document.activeElement.getAttribute('aria-label')") == "Version after"
    # Where one was is kept, too.
    reload(seen)
    seen.wait("document.querySelectorAll('.turn').length === 4")
    assert text(seen, ".asked .branches").split() == ["‹", "1/2", "›"]
    seen.point(".asked .branches button:last-child", click=True)
    assert said(seen) == ["Which colour?", "Blue."]
    ask(seen, "And?")
    assert [each["content"] for each in server.asked[-1]["messages"]] == [
        *("Which colour?", "Blue.", "And?")
    ]


def test_any_answer_is_regenerated_beside_the_old_one(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    seen = page(view="text")
    ask(seen, "What?")
    ask(seen, "Why?")
    server.steps = made_steps(pieces("Rivers."))
    seen.point(".turn:nth-child(2) .again", click=True)
    finished(seen)
    assert said(seen) == ["What?", "Rivers."]
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "What?"}]
    assert text(seen, ".turn:last-child .branches").split() == ["‹", "2/2", "›"]
    seen.point(".turn:last-child .branches button", click=True)
    assert said(seen) == ["What?", "Salt.", "Why?", "Salt."]
    assert seen.complaints() == []


def test_an_answer_that_was_cut_off_is_gone_on_with(page, server) -> None:
    cut = made_steps(pieces("Salt is what rivers bring."))[:3]
    server.steps = [*cut[:-1], replace(cut[-1], finish_reason="length")]
    seen = page(view="text")
    seen.point("#fold", click=True)
    seen.run("document.getElementById('thinking').value = 'on'")
    ask(seen, "What?")
    begun = "".join(step.text for step in cut)
    assert "Cut off" in text(seen, ".turn:last-child .note")
    server.steps = made_steps(pieces(" rivers bring."))
    seen.point(".goon", click=True)
    seen.wait("document.querySelector('.turn > .prose').textContent.endsWith('bring.')")
    finished(seen)
    assert said(seen) == ["What?", f"{begun} rivers bring."]
    assert server.asked[-1] == {
        "model": "trio",
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": begun}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "trace": True,
    }
    assert not seen.run("document.querySelector('.goon').checkVisibility()")
    assert not seen.run("document.querySelector('.turn:last-child .note').checkVisibility()")
    assert f"{len(cut) + len(server.steps) - 1} tokens" in text(seen, ".turn:last-child .facts")
    seen.run("document.getElementById('as-tokens').click()")
    seen.settle()
    assert answer(seen) == f"{begun} rivers bring."


# Answers side by side.


def alone(words: str, name: str) -> list[Step]:
    """Return what a member writes alone: all of it its own."""
    return [
        replace(step, trace=Trace(step.trace.ballots[0].top, (replace(step.trace.ballots[0]),)))
        for step in made_steps(pieces(words), (name, *MEMBERS))
    ]


def choose(seen: Browser, *names: str) -> None:
    """Let models be asked beside the chosen one."""
    for name in names:
        seen.run(
            f"document.querySelector('#rivals input[value=' + CSS.escape({json.dumps(name)}) + ']')"
            ".click()"
        )


def columns(seen: Browser) -> list[str]:
    return list(
        seen.run("[...document.querySelectorAll('.side > .prose')].map(n => n.textContent.trim())")
    )


def test_answers_stand_side_by_side_and_one_is_gone_on_with(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    server.others = {IDS[1]: alone("Rivers.", MEMBERS[0]), IDS[2]: alone("Rocks.", MEMBERS[1])}
    seen = page(view="text")
    choose(seen, IDS[1], IDS[2])
    # Three are the most.
    assert seen.run("document.querySelectorAll('#rivals :disabled').length") == 1
    assert text(seen, "#send") == "Ask 3"
    seen.type("Why?")
    seen.press("Enter")
    seen.wait("document.querySelectorAll('.side').length === 3")
    finished(seen)
    assert columns(seen) == ["Salt.", "Rivers.", "Rocks."]
    assert sorted(str(asked["model"]) for asked in server.asked) == sorted(IDS[:3])
    question = [{"role": "user", "content": "Why?"}]
    assert all(asked["messages"] == question for asked in server.asked)
    tops = seen.run("[...document.querySelectorAll('.side')].map(n => n.offsetTop)")
    assert len(set(tops)) == 1
    # Each has a view of its own.
    seen.point(".side:nth-child(3) .look", click=True)
    shown = "[...document.querySelectorAll('.side > .prose')].map(n => n.checkVisibility())"
    assert seen.run(shown) == [True, False, True]
    seen.point(".side:nth-child(3) .token", click=True)
    assert "token 1" in text(seen, "#card")
    pressed = "[...document.querySelectorAll('.choose')].map(n => n.ariaPressed)"
    assert seen.run(pressed) == ["true", "false", "false"]
    seen.point(".side:nth-child(4) .choose", click=True)
    assert seen.run(pressed) == ["false", "false", "true"]
    reload(seen)
    seen.wait("document.querySelectorAll('.side').length === 3")
    assert columns(seen) == ["Salt.", "Rivers.", "Rocks."]
    assert seen.run(pressed) == ["false", "false", "true"]
    choose(seen, IDS[1], IDS[2])
    assert text(seen, "#send") == "Send"
    ask(seen, "And?")
    assert [each["content"] for each in server.asked[-1]["messages"]] == ["Why?", "Rocks.", "And?"]
    # Another choice leads to what was said behind it.
    seen.point(".side:nth-child(2) .choose", click=True)
    assert seen.run("document.querySelectorAll('.turn').length") == 4
    ask(seen, "So?")
    assert [each["content"] for each in server.asked[-1]["messages"]] == ["Why?", "Salt.", "So?"]
    assert seen.complaints() == []


def test_on_a_phone_one_answer_is_below_the_other(page, server) -> None:
    seen = page(view="text", size=(390, 844))
    choose(seen, IDS[1])
    seen.type("Why?")
    seen.press("Enter")
    seen.wait("document.querySelectorAll('.side').length === 2")
    finished(seen)
    boxes = seen.run(
        "[...document.querySelectorAll('.side')].map(n => n.getBoundingClientRect())"
        ".map(r => [r.left, r.top, r.width])"
    )
    assert boxes[0][0] == boxes[1][0]
    assert boxes[0][1] < boxes[1][1]
    assert boxes[0][2] > 300
    assert seen.run("document.documentElement.scrollWidth") <= 390


def test_one_of_several_that_fails_is_tried_again_by_itself(page, server) -> None:
    server.steps = made_steps(pieces("Salt."))
    server.refused = IDS[1]
    seen = page(view="text")
    choose(seen, IDS[1])
    seen.type("Why?")
    seen.press("Enter")
    seen.wait("document.querySelectorAll('.side').length === 2")
    finished(seen)
    assert columns(seen) == ["Salt.", ""]
    assert "The server is busy" in text(seen, ".side:nth-child(3) .note")
    server.refused = ""
    seen.point(".side:nth-child(3) .again", click=True)
    seen.wait("document.querySelector('.side:nth-child(3) .prose').textContent")
    finished(seen)
    assert columns(seen) == ["Salt.", "Salt."]
    assert [asked["model"] for asked in server.asked][2:] == [IDS[1]]
    # Asked anew, both are a version of their own.
    seen.point(".side .again", click=True)
    finished(seen)
    assert text(seen, ".side .branches").split() == ["‹", "2/2", "›"]
    assert len(server.asked) == 5


# Where members disagree.


def test_disputed_words_are_underlined_and_listed(page, server) -> None:
    server.steps = disputed_steps()
    seen = page(view="text")
    ask(seen)
    assert text(seen, ".contest summary") == "Where they disagreed: 2 words"
    marked = "[...CSS.highlights.get('disputed')].map(range => range.toString())"
    # The word that stands there twice is underlined where it is disputed.
    assert sorted(seen.run(marked)) == ["salt", "water"]
    inside = "[...CSS.highlights.get('disputed')].map(range => range.startContainer.data)"
    assert set(seen.run(inside)) == {" the salt of water."}
    seen.point(".contest summary", click=True)
    assert "Jensen-Shannon" in text(seen, ".contest p")
    words = "[...document.querySelectorAll('.contest .tools button')].map(n => n.innerText)"
    assert seen.run(words) == ["salt 1.00", "water 0.40"]
    seen.point(".contest .tools button:nth-child(2)", click=True)
    assert "votes 0.40 bits apart" in text(seen, "#card")
    assert seen.run("[...CSS.highlights.get('current')].join()") == "water"
    seen.press("Escape")
    assert seen.run("document.getElementById('card').hidden")
    seen.run("document.getElementById('as-tokens').click()")
    seen.settle()
    lines = f"[...document.querySelectorAll({json.dumps(TOKENS + '.apart')})]"
    assert seen.run(f"{lines}.map(n => n.textContent.trim())") == ["salt", "water"]
    seen.point(".contest .tools button", click=True)
    assert current(seen) == 4
    assert seen.complaints() == []


def disputed_steps() -> list[Step]:
    """Return an answer of two members that disagree of two words: one wholly, one in part."""
    cut = [b"The", b" salt", b" *is*", b" the", b" salt", b" of", b" water", b"."]
    votes, apart = {4: (1.0, 0.0), 6: (0.9, 0.2)}, {4: 1.0, 6: 0.3973}
    steps = made_steps(cut, MEMBERS[:2])
    for number, step in enumerate(steps):
        beliefs = votes.get(number, (0.8, 0.8))
        ballots = tuple(
            replace(ballot, chosen=belief, stayed=True, weight=0.5, top=tops(step.piece, belief))
            for ballot, belief in zip(step.trace.ballots, beliefs, strict=True)
        )
        trace, bits = Trace(ballots[0].top, ballots), apart.get(number, 0.0)
        steps[number] = replace(step, stayed=(True, True), trace=trace, disagreement=bits)
    return steps


def tops(piece: bytes, belief: float) -> tuple[Candidate, ...]:
    found = [Candidate(piece, belief), Candidate(b" other", 1 - belief)]
    return tuple(sorted((c for c in found if c.probability), key=lambda c: -c.probability))


# Settings of the answer, and the context.


def test_weights_a_schema_and_thoughts_apart_are_asked_for(page, server) -> None:
    seen = page(view="text")
    assert "Shared space: pivot" in seen.run("document.getElementById('space').textContent")
    seen.point("#fold", click=True)

    def put(name: str, value: str) -> None:
        seen.run(
            f"(n => {{ n.value = {json.dumps(value)}; n.dispatchEvent(new Event('change')); }})"
            f"(document.querySelector('[name={json.dumps(name)}]'))"
        )

    ask(seen)
    assert not {"weights", "json_schema", "thinking"} & server.asked[-1].keys()
    put("weights", "running")
    put("thinking", "apart")
    put("json_schema", '{"type": "object"}')
    ask(seen)
    asked = server.asked[-1]
    assert (asked["weights"], asked["thinking"]) == ("running", "apart")
    assert asked["json_schema"] == '{"type": "object"}'
    assert not seen.run("document.getElementById('own').checkVisibility()")
    put("weights", "own")
    put(f"weight {MEMBERS[1]}", "2.5")
    ask(seen)
    own = dict(zip(MEMBERS, (1, 2.5, 1), strict=True))
    assert server.asked[-1]["weights"] == own
    # They come back with a reload; a member alone has no weight.
    reload(seen)
    seen.wait(f"document.querySelector('[name=\"weight {MEMBERS[1]}\"]')?.value === '2.5'")
    put("model", IDS[1])
    ask(seen)
    assert "weights" not in server.asked[-1]


def test_the_context_that_a_conversation_takes_is_shown(page, server) -> None:
    seen = page(view="text")
    assert not seen.run("document.getElementById('meter').checkVisibility()")
    ask(seen)
    taken = 31 + len(server.steps) - 1
    assert text(seen, "#meter").split("\n")[-1] == f"{taken} of 400 tokens"
    share = seen.run("parseFloat(document.querySelector('#meter .fill').style.width)")
    assert abs(share - taken / 4) < 0.1
    seen.point("#new", click=True)
    assert not seen.run("document.getElementById('meter').checkVisibility()")
    seen.point("#chats .go", click=True)
    assert f"{taken} of 400" in text(seen, "#meter")


# What axe-core (`npm pack axe-core`) finds is found where its file is named.
AXE = os.environ.get("EVA_LOCAL_AXE")


@pytest.mark.skipif(not AXE, reason="EVA_LOCAL_AXE names no axe.min.js")
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(page, server, size, dark) -> None:
    server.steps = made_steps(pieces(f"{MARKDOWN}\n{FENCED}\n"))
    seen = page(view="text", size=size, dark=dark)
    faults = []

    def look() -> None:
        seen.settle()
        seen.run(f"{Path(str(AXE)).read_text()}; 1")
        found = "axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html]))"
        told = seen.call(
            "Runtime.evaluate", expression=found, awaitPromise=True, returnByValue=True
        )
        faults.extend(f for f in told["result"]["value"] if f[0] in ("serious", "critical"))

    look()
    seen.point("#fold", click=True)
    choose(seen, IDS[1], IDS[2])
    look()
    seen.point("#fold", click=True)
    seen.point("#words", click=True)
    seen.type("Why?")
    seen.press("Enter")
    seen.wait("document.querySelectorAll('.side').length === 3")
    finished(seen)
    seen.point(".contest summary", click=True)
    look()
    seen.point(".side .look", click=True)
    seen.point(".side .token", click=True)
    look()
    seen.press("Escape")
    seen.point(".edit", click=True)
    look()
    seen.point("#menu", click=True)
    if seen.run("document.getElementById('side').hidden"):
        seen.point("#menu", click=True)
    seen.point("#chats .more", click=True)
    look()
    seen.point("#chats .rename", click=True)
    look()
    assert faults == []


# The frame.


def test_theme_and_view_are_remembered(page, server) -> None:
    seen = page(view="text")
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(251, 250, 246)", "rgb(23, 24, 26)"
    assert seen.run(paper) == light

    def choose(theme: str) -> None:
        seen.run(
            f"(t => {{ t.value = '{theme}'; t.dispatchEvent(new Event('change')); }})"
            "(document.getElementById('theme'))"
        )

    choose("dark")
    assert seen.run(paper) == dark
    seen.run("document.getElementById('as-tokens').click()")
    reload(seen)
    assert seen.run(paper) == dark
    assert seen.run("document.getElementById('theme').value") == "dark"
    assert seen.run("document.getElementById('as-tokens').checked")
    seen = page(dark=True)
    choose("light")
    assert seen.run(paper) == light
    assert seen.run("getComputedStyle(document.documentElement).colorScheme") == "light"
    choose("system")
    assert seen.run(paper) == dark


NAMED = "(n => n === document.body ? 'BODY' : n.id || n.className || n.tagName)"
FOCUSABLE = "button, input, select, textarea, [tabindex='0']"


def test_everything_is_reached_by_tab_and_seen(page, server) -> None:
    server.steps = made_steps(pieces(FENCED))
    seen = page(view="text")
    ask(seen)
    seen.point("#chats .more", click=True)
    seen.run("document.getElementById('find').focus()")
    wanted = seen.run(
        f'[...document.querySelectorAll("{FOCUSABLE}")]'
        ".filter(n => n.checkVisibility() && !n.disabled && n.id !== 'as-tokens')"
        f".map({NAMED})"
    )
    reached = []
    for _ in range(len(wanted) + 2):
        reached.append(seen.run(f"{NAMED}(document.activeElement)"))
        ring = seen.run(
            "(n => [n, n.nextElementSibling, n.parentElement].some(x => x &&"
            "(getComputedStyle(x).outlineStyle !== 'none' ||"
            " getComputedStyle(x).boxShadow !== 'none')))(document.activeElement)"
        )
        assert ring or reached[-1] in ("BODY", "talk"), reached[-1]
        seen.press("Tab")
    assert set(wanted) <= set(reached)
    nameless = seen.run(
        f'[...document.querySelectorAll("{FOCUSABLE}")].filter(n => !n.hidden &&'
        "!(n.ariaLabel || n.textContent.trim() || n.labels?.length || n.tagName === 'PRE'))"
        ".map(n => n.id || n.className)"
    )
    assert nameless == []


def test_a_finger_finds_targets_of_44_pixels(page, server) -> None:
    server.steps = made_steps(pieces(FENCED))
    seen = page(view="text", size=(390, 844))
    assert seen.run("document.getElementById('side').hidden")
    seen.point("#fold", click=True)
    seen.run("(w => { w.value = 'own'; w.dispatchEvent(new Event('change')); })(weights)")
    choose(seen, IDS[1])
    seen.point("#words", click=True)
    seen.type("Why is the sea salty?")
    seen.press("Enter")
    seen.wait("document.querySelectorAll('.side').length === 2")
    finished(seen)
    seen.point(".turn:last-child .again", click=True)
    finished(seen)
    seen.point(".contest summary", click=True)
    targets = "button, select, #find, #view label, #words, summary, .check, #settings input"
    targets += ", #settings textarea"
    small = (
        f"[...document.querySelectorAll({json.dumps(targets)})]"
        ".filter(n => n.type !== 'checkbox')"
        ".filter(n => n.checkVisibility()).map(n => [n, n.getBoundingClientRect()])"
        ".filter(([, r]) => r.width < 44 || r.height < 44).map(([n]) => n.id || n.className)"
    )
    assert seen.run(small) == []
    assert seen.run("document.documentElement.scrollWidth") <= 390
    seen.tap("#menu")
    seen.wait("!document.getElementById('side').hidden")
    seen.tap("#chats .more")
    seen.wait("document.querySelector('#chats .rename')")
    assert seen.run(small) == []
    seen.press("Escape")
    seen.wait("document.getElementById('side').hidden")
    assert seen.run("document.activeElement.id") == "menu"


@pytest.mark.parametrize("dark", [False, True])
def test_code_and_lists_can_be_read_in_light_and_dark(page, server, dark) -> None:
    server.steps = made_steps(pieces(f"{MARKDOWN}\n{FENCED}\n"))
    seen = page(view="text", dark=dark)
    ask(seen)
    seen.point("#chats .more", click=True)
    ratio, where = seen.run(CONTRAST)
    assert ratio >= 4.5, where


# The real server, on fake models.


def opened(browser: Browser, client) -> Browser:
    browser.open(f"http://127.0.0.1:{client.port}/")
    browser.run("document.getElementById('as-tokens').click()")
    return browser


def letters(words: str) -> str:
    """Leave out what the page shows as signs: fake models write control characters, too."""
    return re.sub(r"[^\w<>]", "", words)


@pytest.fixture
def spec(tmp_path):
    return fake_spec(tmp_path)


def test_the_real_server_answers_the_page(browser, spec) -> None:
    with serving(lambda: fake_ensemble(spec)) as client:
        sent = client.ask("/").headers
        assert all(sent[name] == value for name, value in chat_page().headers.items())
        seen = opened(browser, client)
        seen.wait("document.getElementById('model').value")
        assert text(seen, "#cast").split() == ["a", "b"]
        expected = client.chat().body["choices"][0]["message"]["content"]
        ask(seen, "the unbelievable")
        assert letters(answer(seen)) == letters(expected)
        assert seen.run("document.querySelectorAll('.token.m0, .token.m1').length")
        seen.point(f"{TOKENS}:nth-child(2)")
        assert "carried by" in text(seen, "#card")
        alone = client.chat(model="pair/b").body["choices"][0]["message"]["content"]
        seen.run(
            "(m => { m.value = 'pair/b'; m.dispatchEvent(new Event('change')); })"
            "(document.getElementById('model'))"
        )
        seen.point("#new", click=True)
        ask(seen, "the unbelievable")
        assert letters(answer(seen)) == letters(alone)
        assert seen.complaints() == []


def test_the_real_server_answers_side_by_side(browser, spec) -> None:
    with serving(lambda: fake_ensemble(spec)) as client:
        seen = opened(browser, client)
        seen.wait("document.getElementById('model').value")
        assert "Shared space: pivot" in seen.run("document.getElementById('space').textContent")
        choose(seen, "pair/a", "pair/b")
        seen.point("#words", click=True)
        seen.type("the unbelievable")
        seen.press("Enter")
        seen.wait("document.querySelectorAll('.side').length === 3")
        finished(seen)
        written = "[...document.querySelectorAll('.side > .text')].map(n => n.textContent)"
        for words, name in zip(seen.run(written), ("pair", "pair/a", "pair/b"), strict=True):
            expected = client.chat(model=name).body["choices"][0]["message"]["content"]
            assert letters(words) == letters(expected)
        usage = client.chat().body["usage"]["total_tokens"]
        most = client.ask("/v1/models").body["data"][0]["max_model_len"]
        assert f"{usage} of {most} tokens" in text(seen, "#meter")
        assert seen.complaints() == []


def test_stopping_frees_the_place_at_the_real_server(browser, spec) -> None:
    ensemble = fake_ensemble(spec, parallel=1)
    gate = step_gate(ensemble)
    with serving(lambda: ensemble, n_waiting=0) as client, gate.closed():
        seen = opened(browser, client)
        seen.wait("document.getElementById('model').value")
        ask(seen, "the unbelievable", done=False)
        gate.let(9)
        seen.wait(f"document.querySelector({json.dumps(TOKENS)})")
        assert ensemble.scheduler.n_running == 1
        assert client.chat().status == 503
        seen.press("Escape")
        until(lambda: ensemble.scheduler.n_running == 0)
        finished(seen)
        # The step that is under way ends, and the next is that of another client.
        gate.let(1)
        with contextlib.closing(client.open(CHAT, {"messages": MESSAGES, "stream": True})):
            until(lambda: ensemble.scheduler.n_running == 1)
            ask(seen, "the unbelievable")
            assert "The server is busy: " in text(seen, ".turn:last-child .note")


def test_the_real_server_s_key(browser, spec) -> None:
    with serving(lambda: fake_ensemble(spec), keys=("sesame",)) as client:
        seen = opened(browser, client)
        seen.wait("!document.getElementById('key').hidden")
        seen.type("sesame")
        seen.press("Enter")
        seen.wait("document.getElementById('model').value")
        ask(seen, "the unbelievable")
        assert answer(seen)
        seen.run("sessionStorage.clear()")


def test_the_page_waits_for_the_real_server_s_models(browser, spec) -> None:
    go = threading.Event()

    def opener():
        assert go.wait(PATIENCE_S)
        return fake_ensemble(spec)

    with serving(opener, ready=False) as client:
        try:
            until(lambda: answers(client))
            seen = opened(browser, client)
            seen.wait("document.getElementById('trouble').textContent.includes('opening')")
        finally:
            go.set()
        seen.wait("document.getElementById('model').value")


def answers(client) -> bool:
    try:
        return client.ask("/health").status == 503
    except ConnectionError:
        return False
