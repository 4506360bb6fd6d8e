"""What usually follows the end of a token: learned from texts, for each kind of end."""

import functools
from collections.abc import Mapping
from importlib import resources

import numpy as np

from eva_local.fusion.votes import Floats

#: END among the symbols, after the 256 bytes.
END = 256

#: The kind of all borders.
ANY = "any"
_UNIFORM = np.full(END + 1, 1 / (END + 1))
# As many borders of a text count as much as all that was found in others.
_PRIOR = 8


class BoundaryPrior:
    """What usually follows a border, learned from those of the text that were decoded.

    A border that waits is taken to go on like others of its kind: its last byte, and whether it
    was likely when it came up. That is what makes waiting cheap: with one mean for all kinds
    the loss is several times as high (docs/bytes.md). A text begins with what was found in
    others (`tools/boundary_prior.py`), `means: (257,)` of kinds, which counts as few borders, so
    that it soon learns its own.
    """

    def __init__(self, means: Mapping[str, Floats]) -> None:
        #: What is known of each kind, and of how many borders.
        self.means = {kind: (mean, _PRIOR) for kind, mean in means.items()}

    def learn(self, kind: str, masses: Floats) -> None:
        """Take in `masses: (257,)`, how a border of a kind goes on; they sum to 1."""
        for key in (ANY, kind):
            # A kind begins with what is known of all.
            mean, count = self.means.get(key, (self.expected(key), 1))
            self.means[key] = mean + (masses - mean) / (count + 1), count + 1

    def expected(self, kind: str) -> Floats:
        """Return (257,): how a border of a kind is thought to go on."""
        known = self.means.get(kind) or self.means.get(ANY)
        return _UNIFORM if known is None else known[0]


@functools.cache
def found_before() -> Mapping[str, Floats]:
    """Return what follows borders in other texts, by kind."""
    with resources.files(__package__).joinpath("boundary.npz").open("rb") as file:
        held = np.load(file, allow_pickle=False)
        kinds, means = held["kinds"].tolist(), held["means"].astype(np.float64)
    return dict(zip(kinds, means, strict=True))


@functools.cache
def border_kind(byte: int, *, likely: bool | None = None) -> str:
    """Return the kind of a border: what `byte` before it is, and whether it was `likely`.

    That is when it came up; None stands for one inside a piece.
    """
    character, kind = chr(byte), f"byte {byte}"
    if byte >= 0x80:
        kind = "half"
    elif character.isalpha():
        kind = "upper" if character.isupper() else "lower"
    elif character.isdigit():
        kind = "digit"
    return f"{kind}, {'inside' if likely is None else 'likely' if likely else 'unlikely'}"
