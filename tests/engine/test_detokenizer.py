import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import awkward_text, cut

from eva_local.engine.detokenizer import TextStream, harmless, harmless_line, refuse_utf16
from eva_local.errors import InputError

stops = st.lists(st.text(alphabet="ab\n中é ", min_size=1, max_size=4), max_size=3)


def run(pieces: list[bytes], stop: list[str]) -> tuple[list[str], bool]:
    """Push all pieces and finish; return what was shown, and whether a stop string was met."""
    stream = TextStream(stop)
    shown = [stream.push(piece) for piece in pieces]
    return [*shown, stream.finish()], stream.stopped


@given(pieces=cut(), stop=stops)
def test_law_5_streamed_text_is_the_completed_text(pieces, stop) -> None:
    shown, stopped = run(pieces, stop)
    whole, whole_stopped = run([b"".join(pieces)], stop)
    assert "".join(shown) == "".join(whole)
    assert stopped == whole_stopped


@given(pieces=cut(awkward_text.map(lambda text: text.encode("utf-8", "replace"))))
def test_law_5_no_half_character_is_shown(pieces) -> None:
    shown, _ = run(pieces, [])
    assert "".join(shown).encode() == b"".join(pieces)


@given(text=st.text(alphabet="ab中 ", max_size=20), stop=stops, data=st.data())
def test_law_5_no_part_of_a_stop_string_is_shown(text, stop, data) -> None:
    pieces = data.draw(cut(st.just(text.encode())))
    # The stop string that is complete first, wherever the pieces end.
    places = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    shown, stopped = run(pieces, stop)
    assert stopped == bool(places)
    assert "".join(shown) == (text[: min(places)[1]] if places else text)
    for end in range(len(shown)):
        # What was shown never ends in what turned out to begin a stop string.
        assert text.startswith("".join(shown[:end]))


def test_half_a_character_at_the_end_is_left_out() -> None:
    assert run(["中".encode(), b"\xe4\xb8"], []) == (["中", "", ""], False)


def test_bytes_that_are_no_utf8_show_as_a_mark() -> None:
    assert "".join(run([b"a\xff", b"b"], [])[0]) == "a\ufffdb"


def test_text_waits_while_it_may_begin_a_stop_string() -> None:
    stream = TextStream(["END"])
    assert stream.push(b"the E") == "the "
    assert stream.push(b"N") == ""
    assert stream.push(b"T") == "ENT"
    assert stream.push(b"EN") == ""
    assert stream.finish() == "EN"


@pytest.mark.parametrize("after", [b"", b"more"])
def test_nothing_is_shown_after_a_stop_string(after) -> None:
    stream = TextStream(["\n"])
    assert stream.push(b"one\ntwo") == "one"
    assert stream.stopped
    assert stream.push(after) == ""
    assert stream.finish() == ""


def test_what_a_terminal_would_obey_is_made_visible() -> None:
    assert harmless("a\tb\n\x1b[2J\x7f\x9b\u202e") == "a\tb\n\u241b[2J\u2421<U+009B><U+202E>"
    assert harmless_line("name\nsha256: \r\x1b") == "name sha256: \u240d\u241b"


@given(st.text())
def test_a_harmless_line_is_one_line(text) -> None:
    assert "\n" not in harmless_line(text)
    assert harmless(harmless_line(text)) == harmless_line(text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_no_utf_8(encoding) -> None:
    with pytest.raises(InputError, match=r"^in\.txt is no UTF-8 text but perhaps UTF-16: convert"):
        refuse_utf16("中 a\n".encode(encoding), "in.txt")
    refuse_utf16("中 a\n".encode("utf-8-sig"), "in.txt")
