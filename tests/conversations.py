"""Conversations of all shapes that a chat template may meet."""

from __future__ import annotations

from eva_local.types import Message


def _told(*turns: str) -> list[Message]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(roles[turn[0]], turn[2:]) for turn in turns]


CONVERSATIONS = {
    "a question": _told("u:Who are you?"),
    "system": _told("s:Be brief.", "u:Who are you?"),
    "turns": _told("u:Hi.", "a:Hello! How can I help?", "u:Two and two?"),
    "system and turns": _told(
        "s:Be brief.", "u:Hi.", "a:Hello!", "u:Bye.", "a:See you.", "u:When?"
    ),
    "nothing": _told("u:"),
    "an empty system message": _told("s:", "u:Hi."),
    "white space around": _told("s:\n be brief \n", "u:  a  b \n\n", "a: c\t", "u: d"),
    "only white space": _told("u: \n "),
    "lines and code": _told("u:def f(x):\n\n    return x\n\n\n\t# <b>\"a\" & 'b'</b> \\n {1}"),
    "other scripts": _told("u:Ünï — 中文 😀 e\u0301 \u00a0 ا", "a:ｆｕｌｌ │ ｜ ▁", "u:\u200b ."),
    "a template": _told("u:{{ messages }} {% if x %} {# no #} {%- raw -%}"),
    "private characters": _told("u:\U000f0000a\U000f0001", "a:\ue000", "u:\U000ffffd"),
    "json": _told('u:{"a": [1, null], "b": "\\u00e9"}', "a:[]", "u:```json\n[]\n```"),
    "an earlier thought": _told("u:Hi.", "a:<think>\nhm\n</think>\n\nHello!", "u:Bye."),
    "an empty thought": _told("u:Hi.", "a:<think>\n\n</think>\n\nHello!", "u:Bye."),
    "marks of thoughts": _told("u:What is <think> in HTML? And </think>?"),
    "switches": _told("s:Be brief. /no_think", "u:Hi. /think"),
    "two questions": _told("u:One.", "u:Two."),
    "two answers": _told("u:One.", "a:Two.", "a:Three.", "u:Four."),
    "an answer first": _told("a:One.", "u:Two."),
    "two system messages": _told("s:First rule.", "s:Second rule.", "u:Three."),
    "a late system message": _told("u:One.", "a:Two.", "s:Third rule.", "u:Four."),
    "system last": _told("u:One.", "s:A rule."),
    "system alone": _told("s:A rule."),
    "an open answer": _told("u:One.", "a:Two and"),
    "an open answer with a space": _told("s:Be brief.", "u:One.", "a:Two "),
    "an empty open answer": _told("u:One.", "a:"),
    "an open thought": _told("u:One.", "a:<think>\nTwo and"),
    "an open answer after a thought": _told("u:One.", "a:<think>\nhm\n</think>\n\nTwo and"),
    "a late open answer": _told("u:One.", "a:Two.", "u:Three.", "a:Four\n\nand"),
}
