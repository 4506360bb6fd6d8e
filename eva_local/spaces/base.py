"""The shared space: its symbols, and how each member speaks in it.

A space hands out voices. A voice is one member's part in one text: it says what must be
decoded, takes the logits, votes, and is told which symbol was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from eva_local.fusion.votes import Floats, Marks, Vote
from eva_local.llama.model import Logits, Run


class Constraint(Protocol):
    """What may come next in a text, as its grammar has it."""

    @property
    def allowed(self) -> Marks:
        """(symbols,): which symbols, END among them, may come next; never none."""


class MemberState(Protocol):
    """One member's part in one text."""

    @property
    def room(self) -> int:
        """How many more tokens fit into the member's context; negative when it is full."""

    @property
    def unread(self) -> int:
        """How many bytes of the text the member has not read and `room` does not count."""

    @property
    def ready(self) -> bool:
        """Whether it can vote; else something is pending."""

    @property
    def n_cached(self) -> int:
        """How many tokens of a text the cache holds."""

    def holds(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of a prompt the cache holds."""

    def clear(self) -> None:
        """Hold nothing: what the cache holds after a failure is unknown."""

    def adopt(self, other: Self) -> None:
        """Hold what another voice of the same member holds; the text that was here ends."""

    def trade(self, other: Self) -> None:
        """Go on in the place of another voice, whose text is over, in llama.cpp's cache."""

    def start(
        self, prompt: Sequence[int], judged: int = 0, grammar: Constraint | None = None
    ) -> None:
        """Begin a new text after the tokens of a prompt, keeping what the cache has of them.

        The last `judged` bytes of the prompt are evidence of how well the member predicts it.
        Where only some candidates are voted on, what a `grammar` allows is among them.
        """

    def pending(self, limit: int | None) -> list[Run]:
        """Return what must be decoded before the next vote, at most `limit` tokens of it."""

    def take(self, run: Run, logits: Logits | None) -> None:
        """Take the result of a run from `pending`."""

    def read(self, run: Run, blocks: Iterable[Logits]) -> None:
        """Take the logits after every token of a run, and remember how likely each was."""

    def commit(self, symbol: int) -> None:
        """Append the chosen symbol."""

    def evidence(self) -> float:
        """Return the mean log-likelihood of what was judged of the prompt, in nats per byte."""

    def candidates(self, vote: Vote, count: int, /) -> list[tuple[bytes, float]]:
        """Return what the member thinks likeliest to come next, as pieces; END has no bytes."""


V = TypeVar("V", bound=MemberState)
V_contra = TypeVar("V_contra", bound=MemberState, contravariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Slate:
    """Pieces to choose among, ascending, END last and without bytes, and the votes on them.

    The symbols of these votes are the places of the pieces. Member `lead` put the pieces forward.
    The vote of a member that was not asked is None.
    """

    lead: int
    pieces: tuple[bytes, ...]
    votes: Sequence[Vote | None]


class Slates(Protocol[V_contra]):
    """Lets pieces be chosen where symbols are none."""

    def slate(
        self, states: Sequence[V_contra], weights: Floats, count: int, only: int | None = None
    ) -> Slate:
        """Return `count` pieces to choose among; `weights: (members,)` are what voices count.

        With `only` that member puts them forward and votes, and nobody else is asked.
        """

    def write(self, states: Sequence[V_contra], slate: Slate, chosen: int) -> None:
        """Append the chosen piece of a slate."""


class Space(Protocol[V]):
    """The symbols in which votes are added up; one of them, `end`, is END."""

    end: int
    #: The member whose vote comes first: the others may depend on it.
    lead: int

    @property
    def slates(self) -> Slates[V] | None:
        """What puts pieces forward where symbols are none; else None.

        Penalties and biases have a meaning on pieces only.
        """

    def piece(self, symbol: int) -> bytes:
        """Return the bytes of a symbol; END has none."""

    def spell(self, text: bytes) -> list[int]:
        """Return symbols whose pieces join to `text`."""

    def is_text(self, symbol: int) -> bool:
        """Return whether there is such a symbol and it stands for text: no END, no control."""

    def states(self, slot: int) -> list[V]:
        """Return a voice of every member in one slot of each model."""

    def alone(self, member: int) -> Self:
        """Return the space in which one member speaks alone."""

    def over(self, states: Sequence[V]) -> list[V]:
        """Return voices of this space in the sequences of others, of the same models."""

    def lead_vote(self, states: Sequence[V]) -> Vote:
        """Return the lead's vote; its voice must have taken its logits."""

    def votes(self, states: Sequence[V], lead: Vote) -> list[Vote]:
        """Return the vote of every voice, all of which have taken their logits."""

    def at_border(self, states: Sequence[V], weights: Floats, /) -> bool:
        """Return whether a piece ends where the text ends; `weights: (members,)` say for whom."""
