"""Who writes a text, in which space, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eva_local.config.specs import FusionSettings
from eva_local.engine.sampling import Samplers
from eva_local.spaces.base import Space


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Members who write a text, the space they vote in, and the rule that fuses their votes.

    `members` are their numbers among the engine's models.
    """

    members: tuple[int, ...]
    names: tuple[str, ...]
    space: Space[Any]
    fusion: FusionSettings
    samplers: Samplers
    _index: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        """Let members be found by their number."""
        numbers = {member: index for index, member in enumerate(self.members)}
        object.__setattr__(self, "_index", numbers)

    def index(self, member: int) -> int | None:
        """Return where in the panel one of the engine's models is, if it is there."""
        return self._index.get(member)
