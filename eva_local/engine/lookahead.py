"""Look-ahead: text that may come next is decoded along with what must be.

A draft is such a text. Each member decodes it in one batch with what is pending, with logits after
every token, and has its votes on all that comes as drafted. What is chosen never depends on a
draft: the votes are those that the member would have had anyway, and nothing looks at the draft
when it fuses them and chooses (sample and match, as llama.cpp verifies drafts).
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from eva_local.llama.model import LOGIT_ROWS, Model, Run
from eva_local.spaces.base import MemberState

#: The drafters that are no member.
DRAFTERS = ("auto", "ngram")
#: Tokens of a draft at most: with the token that is pending, a batch of 8.
MOST = 7
# How likely a member must think a whole draft to add a token to it, and to go on from that token.
SURE, SURER = 0.2, 0.6
# Without a measurement, what each further token of a batch costs, as a share of the first: low
# enough that it is tried.
_FURTHER = 0.15
# What a new measurement says of the machine now, and of such a batch, and how quickly what is known
# of larger batches is forgotten meanwhile.
_NOW, _NEWEST, _RELAXED = 0.3, 0.3, 0.0005
# What is left of what is known of drafts after another one, and after a step without.
_KEPT, _FORGOTTEN = 0.95, 0.998
# A draft must promise to save so much of the time, as forecasts are wrong by so much.
_WORTHWHILE = 0.97
# Kinds of drafts, and what is thought of them at first: so many steps of so many went as drafted.
_MEMBER = "member"
_USUAL = {"alike": (0.9, 1.0), "a little alike": (0.5, 1.0), _MEMBER: (0.75, 1.0)}
# What follows is copied from where so many bytes before it are alike.
_ALIKE = {"alike": 24, "a little alike": 10}
# It is looked for in so many bytes, so that a step costs no more in a longer text.
_FAR = 1 << 16
# A token has so many bytes, roughly.
_BYTES = 5


class DecodeTimes:
    """How long models take for batches of one text, by their tokens, as far as was seen.

    Other work makes all batches slower for a while: that is told apart, so that a batch which was
    last seen in a slow moment is not thought dear, nor others cheap beside it.
    """

    def __init__(self) -> None:
        self._seconds: dict[Model, dict[int, float]] = {}
        self._slowness = 1.0

    def note(self, model: Model, n_tokens: int, seconds: float) -> None:
        """Take in that a batch took so long."""
        known, seconds = self._seconds.setdefault(model, {}), max(seconds, 1e-6)
        usual = known.setdefault(n_tokens, seconds / self._slowness)
        against = min(max(seconds / (usual * self._slowness), 0.5), 2.0)
        self._slowness *= against**_NOW
        known[n_tokens] = usual * against**_NEWEST
        for size in [each for each in known if each > n_tokens]:
            # What it cost in a slow hour must not keep it from being tried for ever.
            known[size] += _RELAXED * (_usual(known[n_tokens], n_tokens, size) - known[size])

    def seconds(self, model: Model, n_tokens: int) -> float:
        """Return how long a batch takes without other work; 0 where nothing is known of it."""
        known = self._seconds.get(model)
        if not known:
            return 0.0
        sizes = sorted(known)
        if sizes[0] <= n_tokens <= sizes[-1]:
            return float(np.interp(n_tokens, sizes, [known[size] for size in sizes]))
        nearest = min(sizes, key=lambda size: abs(size - n_tokens))
        return _usual(known[nearest], nearest, n_tokens)


def _usual(seconds: float, n_tokens: int, wanted: int) -> float:
    return seconds * (1 + _FURTHER * (wanted - 1)) / (1 + _FURTHER * (n_tokens - 1))


class LookAhead:
    """The drafts of one text: who drafts how much, and what came of it.

    `models` are those of the members. `drafter` is auto, ngram (what followed when the text said
    the same before), or the index of the member whose own likeliest tokens are the drafts.
    """

    def __init__(
        self, drafter: int | str, models: Sequence[Model], times: DecodeTimes, prompt: bytes
    ) -> None:
        self.drafted = self.accepted = 0
        #: What may come next, and who foresaw it: None where it was copied.
        self.draft = b""
        self.foreseer: int | None = None
        self._kind = _MEMBER
        self._models = Counter(models)
        #: Tokens that each member decodes ahead at most: those of one model share its rows.
        self.most = max(0, min(MOST, LOGIT_ROWS // max(self._models.values()) - 1))
        self._of = models
        self._times = times
        self._text = bytearray(prompt)
        members = [drafter] if isinstance(drafter, int) else range(len(models))
        self._members = (
            [] if drafter == "ngram" else [m for m in members if models[m].can_roll_back]
        )
        self._copies = not isinstance(drafter, int)
        # Of each kind of draft: how many steps went as drafted, of how many.
        self._seen = {kind: np.zeros(2) for kind in _USUAL}

    def plan(self) -> int:
        """Return how many tokens to draft; 0 where that does not pay now.

        The draft is there, copied, or `foreseer` is to say what it thinks comes next.
        """
        self.draft = b""
        self._seen = {kind: _FORGOTTEN * seen for kind, seen in self._seen.items()}
        for kind, size in _ALIKE.items() if self._copies else ():
            if (text := self._copied(size)) and (length := self._best(kind, None)[0]):
                self.draft, self.foreseer, self._kind = text[: _BYTES * length], None, kind
                return length
        found = [(self._best(_MEMBER, member), member) for member in self._members]
        (length, _), member = min(found, key=lambda each: each[0][1], default=((0, 1.0), None))
        self.foreseer, self._kind = member, _MEMBER
        return length

    def foresee(self, state: MemberState, length: int) -> Iterator[Run]:
        """Draft what a member thinks comes next; yield the runs that it has to decode for that.

        Its last token need not be decoded before it is chosen.
        """
        self.draft = state.ahead
        sure = 1.0
        for _ in range(length):
            piece, share = state.guess()
            sure *= share
            if not piece or sure < SURE:
                return
            self.draft += piece
            if sure < SURER or (run := state.foresee()) is None:
                return
            yield run

    def give_up(self) -> None:
        """Draft nothing more: what was drafted could not be decoded."""
        self.draft, self._members, self._copies = b"", [], False

    def chosen(self, piece: bytes) -> None:
        """Take in what came: the draft goes on from there, or is over."""
        self._text += piece
        if not self.draft or not piece:
            return
        as_drafted = self.draft.startswith(piece)
        self._seen[self._kind] = _KEPT * self._seen[self._kind] + (as_drafted, 1)
        self.draft = self.draft[len(piece) :] if as_drafted else b""
        self.drafted += 1
        self.accepted += as_drafted

    def _copied(self, size: int) -> bytes:
        length = len(self._text)
        at = self._text.rfind(self._text[-size:], max(0, length - _FAR), length - 1) + size
        return bytes(self._text[at : at + _BYTES * MOST]) if size <= at else b""

    def _best(self, kind: str, drafter: int | None) -> tuple[int, float]:
        right, tried = self._seen[kind] + _USUAL[kind]
        shares = [self._cost(drafter, length, right / tried) for length in range(self.most + 1)]
        if not shares[0]:
            return 0, 1.0
        best = min(range(len(shares)), key=shares.__getitem__)
        share = shares[best] / shares[0]
        return (best, share) if share < _WORTHWHILE else (0, 1.0)

    def _cost(self, drafter: int | None, length: int, rate: float) -> float:
        """Return the seconds of a step where each token of a draft is right with some rate."""
        steps = sum(rate**n for n in range(length + 1))
        seconds = 0.0
        for model, count in self._models.items():
            alone = drafter is not None and self._of[drafter] is model
            if alone:
                seconds += (1 + length) * self._times.seconds(model, 1)
            if not model.can_roll_back:
                seconds += steps * self._times.seconds(model, count)
            elif count > alone:
                seconds += self._times.seconds(model, (count - alone) * (1 + length))
        return seconds / steps
