"""The page of a trace, in a real browser: what it shows, and that hostile text stays text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CONTRAST, HOSTILE, Browser
from traces import LONG, MEMBERS, TEXT, made_steps, made_trace, pieces, thinking_steps

from eva_local.trace import TraceFile, trace_page

Opener = Callable[..., Browser]


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Opener:
    """Return a function that shows a trace and returns the browser."""

    def show(trace: TraceFile, **how: object) -> Browser:
        path = tmp_path / "page.html"
        path.write_bytes(trace_page(trace).encode())
        browser.open(path.as_uri(), **how)
        assert browser.complaints() == []
        assert browser.requests() == [path.as_uri()]
        return browser

    return show


def short() -> TraceFile:
    return made_trace(pieces(TEXT))


def test_the_page_loads_nothing_and_could_not(page) -> None:
    seen = page(short())
    seen.run(
        "new Image().src = 'http://127.0.0.1:9/x.png'; fetch('http://127.0.0.1:9/').catch(x=>x)"
    )
    refused = seen.hear("Content Security Policy", 2)
    assert "img-src" in refused
    assert "connect-src" in refused


def test_the_text_is_there_token_by_token(page) -> None:
    trace = short()
    seen = page(trace)
    assert seen.run("document.querySelectorAll('#text [role=option]').length") == len(trace.steps)
    assert seen.run("document.getElementById('text').textContent") == TEXT
    assert seen.run("document.querySelector('#plain pre').textContent") == TEXT
    assert seen.run("document.title") == "trio: trace"
    facts = seen.run("document.getElementById('facts').textContent")
    assert "finished: stop" in facts
    legend = seen.run("document.getElementById('members').innerText")
    assert all(name in legend for name in MEMBERS)
    colours = seen.run(
        "[...document.querySelectorAll('.token')].map(t => getComputedStyle(t).backgroundColor)"
    )
    carriers = [step.trace.carrier for step in trace.steps]
    assert len(set(colours)) == len(set(zip(colours, carriers, strict=True))) == len(MEMBERS)


def test_filtered_votes_are_marked(page) -> None:
    trace = short()
    seen = page(trace)
    marked = seen.run(
        "[...document.querySelectorAll('.token')]"
        ".map(t => getComputedStyle(t).borderBottomStyle === 'dotted')"
    )
    assert marked == [not all(step.stayed) for step in trace.steps]
    assert any(marked)
    first = marked.index(True)
    label = seen.run(f"document.querySelectorAll('.token')[{first}].ariaLabel")
    assert "filtered" in label
    seen.point(f"#text .token:nth-child({first + 1})")
    card = seen.run("document.querySelector('#card .ballot.filtered').innerText")
    assert "filtered" in card
    assert "its first choice is in no other member's top 3" in card


def test_two_thousand_tokens_are_few_elements_and_show_their_candidates(page) -> None:
    trace = made_trace((pieces(LONG) * 40)[:2000])
    seen = page(trace)
    assert seen.run("document.querySelectorAll('.token').length") == 2001
    # What is told of a token is made when it is asked for.
    assert seen.run("document.querySelectorAll('*').length") < 2 * 2001
    for number in (3, 1500, 2000):
        seen.point(f"#text .token:nth-child({number})")
        card = seen.run("document.getElementById('card').innerText")
        assert f"step {number} of 2001" in card
        assert all(name in card for name in MEMBERS)
        step = trace.steps[number - 1]
        for ballot in step.trace.ballots:
            share = 100 * ballot.top[0].probability
            assert (f"{share:.0f}%" in card) or (f"{share:.1f}%" in card)
    # To point at a token makes its card, and nothing else anew.
    made = seen.run(
        "(() => { const card = document.getElementById('card');"
        "const noted = new MutationObserver(() => {});"
        "noted.observe(document.body, {childList: true, subtree: true});"
        "[...document.querySelectorAll('.token')].slice(0, 100).forEach((token, i) =>"
        " token.dispatchEvent(new PointerEvent('pointerover', {bubbles: true, screenX: i})));"
        "const all = noted.takeRecords();"
        "return [all.length, all.filter(one => !card.contains(one.target)).length]; })()"
    )
    assert made[0] >= 100
    assert made[1] == 0


def test_a_thought_is_folded_and_dimmed_before_the_answer(page) -> None:
    steps = tuple(thinking_steps("Let me 🌊 see.\nWhy is it?", TEXT))
    n_thought = steps[-1].usage.reasoning_steps
    seen = page(replace(short(), steps=steps))
    fold = "document.getElementById('thought')"
    assert not seen.run(f"{fold}.open")
    assert (
        seen.run(f"{fold}.querySelector('summary').textContent") == f"Thought, {n_thought} tokens"
    )
    assert f"{n_thought} of them thought" in seen.run("document.getElementById('facts').innerText")
    assert seen.run(f"{fold}.querySelector('.text').textContent") == (
        "Let me 🌊 see.\nWhy is it?</think>"
    )
    assert seen.run("document.getElementById('text').textContent") == TEXT
    assert seen.run("document.querySelector('#plain pre').textContent") == TEXT
    box = f"getComputedStyle({fold}.querySelector('.text'))"
    assert seen.run(f"{box}.opacity") < "1"
    # The first that is shown is of the answer; keys stay in it.
    seen.point("#text .token:nth-child(2)", click=True)
    assert position(seen) == n_thought + 1
    seen.press("Home")
    seen.press("ArrowLeft")
    assert position(seen) == n_thought
    # Where the strip is clicked on the thought, it unfolds.
    seen.run(
        "document.getElementById('course').dispatchEvent(new MouseEvent('click', {clientX: 0}))"
    )
    assert seen.run(f"{fold}.open")
    assert position(seen) == 0
    seen.press("End")
    assert position(seen) == n_thought - 1
    assert seen.run("document.getElementById('card').innerText").startswith("</think>")


def test_a_token_that_comes_to_lie_under_a_resting_pointer_is_not_pointed_at(page) -> None:
    seen = page(short())

    def card(number: int, x: int) -> str:
        # What browsers send where the page has moved and the pointer has not.
        seen.run(
            f"document.querySelector('#text .token:nth-child({number})').dispatchEvent("
            f"new PointerEvent('pointerover', {{bubbles: true, screenX: {x}, screenY: 9}}))"
        )
        return str(seen.run("document.getElementById('card').innerText"))

    assert "step 2 of" in card(2, 50)
    assert "step 2 of" in card(3, 50)
    assert "step 3 of" in card(3, 51)


def test_where_nothing_was_thought_there_is_no_fold(page) -> None:
    assert not page(short()).run("document.getElementById('thought').checkVisibility()")


def position(seen: Browser) -> int:
    return int(seen.run("document.activeElement.dataset.index ?? -1"))


def test_keys_move_between_tokens(page) -> None:
    trace = short()
    seen = page(trace)
    seen.point("#text .token:nth-child(4)", click=True)
    assert position(seen) == 3
    seen.press("ArrowRight")
    assert position(seen) == 4
    seen.press("ArrowLeft")
    seen.press("ArrowLeft")
    assert position(seen) == 2
    seen.press("Home")
    seen.press("ArrowLeft")
    assert position(seen) == 0
    assert "step 1 of" in seen.run("document.getElementById('card').innerText")
    seen.press("ArrowDown")
    down = position(seen)
    assert seen.run(
        f"document.querySelectorAll('.token')[{down}].getClientRects()[0].top >"
        "document.querySelectorAll('.token')[0].getClientRects()[0].bottom - 1"
    )
    seen.press("ArrowUp")
    assert position(seen) < down
    seen.press("End")
    assert position(seen) == len(trace.steps) - 1
    assert seen.run("document.querySelectorAll('[aria-selected=true]').length") == 1
    assert seen.run("document.querySelectorAll('.token[tabindex=\"0\"]').length") == 1


def test_the_button_goes_from_dispute_to_dispute(page) -> None:
    trace = short()
    disputes = [
        number
        for number, step in enumerate(trace.steps)
        if not all(step.stayed) or any(b.top[0].piece != step.piece for b in step.trace.ballots)
    ]
    seen = page(trace)
    # The first one is shown from the start.
    seen.point("#next", click=True)
    assert position(seen) == disputes[1]
    seen.press("n")
    assert position(seen) == disputes[2]
    seen.point("#previous", click=True)
    assert position(seen) == disputes[1]
    for _ in trace.steps:
        seen.press("n")
    assert position(seen) == disputes[-1]


def test_a_hover_goes_and_a_click_stays(page) -> None:
    seen = page(short())
    card = "document.getElementById('card').innerText"
    seen.point("#text .token:nth-child(6)", click=True)
    seen.point("#text .token:nth-child(9)")
    assert "step 9 of" in seen.run(card)
    seen.point("#facts")
    assert "step 6 of" in seen.run(card)
    seen.point("#course", click=True)
    assert abs(position(seen) - len(short().steps) / 2) <= 1


def test_a_member_can_be_put_in_the_light(page) -> None:
    seen = page(short())
    count = "document.querySelectorAll('.token.lit').length"
    seen.point("#members tr:nth-child(2) button", click=True)
    carried = sum(step.trace.carrier == MEMBERS[1] for step in short().steps)
    assert seen.run(count) == carried
    seen.point("#members tr:nth-child(2) button", click=True)
    assert seen.run(count) == 0


def test_hostile_text_is_text(page) -> None:
    trace = made_trace(HOSTILE)
    words = "".join(piece.decode("utf-8", "replace") for piece in HOSTILE)
    evil = {
        "ensemble": words,
        "members": (words, *MEMBERS[1:]),
        "pivot": words,
        "prompt": words + "\udc80",
        "settings": {words: words},
    }
    trace = TraceFile(
        **evil,
        steps=tuple(made_trace(HOSTILE, evil["members"]).steps),
        finish_reason="stop",
        usage=trace.usage,
        notes=(words,),
    )
    seen = page(trace)
    for number in range(1, len(HOSTILE) + 2):
        seen.point(f"#text .token:nth-child({number})")
    assert seen.run("typeof window.hacked") == "undefined"
    assert seen.run("document.images.length + document.scripts.length") == 2
    shown = seen.run("document.getElementById('text').textContent")
    assert HOSTILE[0].decode() in shown
    assert HOSTILE[4].decode() in shown
    # What reorders or hides other text is named, and does not act.
    assert "\u202e" not in seen.run("document.body.innerText")
    marks = seen.run(
        "[...document.querySelectorAll('#text .token:nth-child(3) .mark')].map(m => m.dataset.mark)"
    )
    assert marks == ["U+2028", "U+2029", "U+202E", "U+202C", "U+200F"]
    marks = seen.run(
        "[...document.querySelectorAll('#text .token:nth-child(7) .mark')].map(m => m.dataset.mark)"
    )
    assert marks == ["FF", "FE", "␀", "␛"]


def test_a_character_in_parts_is_one_character(page) -> None:
    seen = page(made_trace(["🌊".encode()[:2], "🌊".encode()[2:3], "🌊".encode()[3:]]))
    tokens = seen.run("[...document.querySelectorAll('.token')].map(t => t.className)")
    joined = [("begun" in name, "ended" in name) for name in tokens]
    assert joined == [(True, False), (True, True), (False, True), (False, False)]
    assert seen.run("document.getElementById('text').textContent") == "🌊"


def shown(seen: Browser) -> list[str]:
    """Return what stands for each token: text, or the names of bytes and marks."""
    return seen.run(
        "[...document.querySelectorAll('.token')].map(token => [...token.childNodes]"
        ".map(node => node.dataset?.mark ?? node.textContent).join(''))"
    )


def test_a_character_in_parts_is_shown_by_its_last_piece(page) -> None:
    cut_text = [b"a \xf0\x9f", b"\x8c", b"\x8ab", b"\xff", b"\xef\xbb\xbfc\xe2(", b"\xe2\x82"]
    seen = page(made_trace(cut_text))
    assert shown(seen) == ["a ", "◦", "🌊b", "FF", "U+FEFFcE2(", "◦", "END"]
    begun = seen.run(
        "[...document.querySelectorAll('.token')].map(t => t.classList.contains('begun'))"
    )
    assert begun == [True, True, False, False, False, True, False]


def test_half_a_character_of_a_thought_is_no_part_of_the_next_members(page) -> None:
    wave = "🌊".encode()
    steps = [
        replace(step, reasoning="", member=member, finish_reason=None)
        for member, piece in ((MEMBERS[0], wave[:2]), (MEMBERS[1], wave[2:]))
        for step in made_steps([piece], [member])[:1]
    ]
    assert shown(page(replace(short(), steps=tuple(steps)))) == ["F09F", "8C8A"]


def test_light_and_dark_differ_and_both_can_be_read(page) -> None:
    papers = []
    for dark in (False, True):
        trace = made_trace(pieces(TEXT)[:40], tuple(f"member-{n}" for n in range(3)))
        seen = page(trace, dark=dark)
        seen.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        papers.append(seen.run("getComputedStyle(document.body).backgroundColor"))
        seen.point("#text .token.filtered", click=True)
        ratio, where = seen.run(CONTRAST)
        assert ratio >= 4.5, where
    assert papers[0] != papers[1]


def test_every_colour_can_be_read(page) -> None:
    for dark in (False, True):
        seen = page(short(), dark=dark)
        seen.run(
            "document.querySelectorAll('.token').forEach((t, i) => { t.className = "
            "`token m${i % 8}`; })"
        )
        ratio, where = seen.run(CONTRAST)
        assert ratio >= 4.5, where


def test_a_narrow_screen_shows_text_and_card(page) -> None:
    seen = page(short(), size=(380, 800))
    assert seen.run("document.documentElement.scrollWidth") <= 380
    seen.point("#text .token:nth-child(3)", click=True)
    box = seen.run("JSON.stringify(document.getElementById('card').getBoundingClientRect())")
    assert '"bottom":800' in box


@pytest.mark.parametrize("count", [0, 1])
def test_a_trace_that_has_hardly_begun_is_shown(page, count) -> None:
    whole = short()
    begun = TraceFile(
        whole.ensemble,
        whole.members,
        whole.pivot,
        whole.prompt,
        {},
        whole.steps[:count],
        notes=("the run was interrupted: the end of the answer is missing",),
    )
    seen = page(begun)
    assert seen.run("document.querySelectorAll('.token').length") == count
    assert "interrupted" in seen.run("document.getElementById('notes').textContent")
