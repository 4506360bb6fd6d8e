"""What is asked for, as a caller words it and as the scheduler holds it, and who answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from eva_local.cache.context import as_row
from eva_local.config.specs import FusionSettings
from eva_local.engine.conversation import read_messages
from eva_local.engine.sampling import SamplerMaker, Samplers
from eva_local.errors import EvaError
from eva_local.fusion.votes import Observer
from eva_local.llama.prompt import Prompt, Thought
from eva_local.spaces.base import Space
from eva_local.types import Message, Sampling, Score, Step

if TYPE_CHECKING:
    from eva_local.engine.sequence import TextSequence

# What can be gone on with: text, a conversation, or symbols, which are read as plain text.
AnyPrompt = Prompt | Sequence[int] | Sequence[Message | Mapping[str, Any]]
# What is told of a request: each step of an answer, a score, or the error that ended it.
Told = Step | Score | EvaError
Sink = Callable[[Told], None]
# What the members' votes count, in their order, in place of the ensemble's own rule.
Weights = Literal["equal", "running"] | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """An answer, or a score, that is asked for.

    Messages may be mappings, as OpenAI's API has them. `sampling` None is that of models.toml. With
    `continuation`, a text or symbols, nothing is written: it is told how likely exactly that is
    after the prompt, and with `symbols` how likely each symbol is. With `trace` every step says why
    its piece was chosen, with `n_top` it names as many of the likeliest. The member named by
    `alone` writes or is scored by itself. `weights` stand in place of the ensemble's, and `observe`
    hears of every decision.
    """

    prompt: AnyPrompt
    sampling: Sampling | None = None
    continuation: str | Sequence[int] | None = None
    trace: bool = False
    n_top: int = 0
    alone: str | None = None
    weights: Weights | None = None
    observe: Observer | None = None
    symbols: bool = False

    def __post_init__(self) -> None:
        said: Any = self.prompt
        if isinstance(said, Sequence) and any(isinstance(each, Mapping) for each in said):
            plain = [asdict(each) if isinstance(each, Message) else each for each in said]
            object.__setattr__(self, "prompt", read_messages(plain))


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


@dataclass(slots=True, eq=False)
class Ticket:
    """A request as it waits for a slot: all that may take long is done.

    `prompts` are each member's own tokens, for the members of `panel`. The last `scored_bytes`
    of them say how well each member predicts; to know that costs a row of logits for each of
    their tokens. What `sampler` makes chooses; None is made from `sampling` when it begins.
    `symbols` are a text to be scored. `thoughts`, one of each member or none, are what the
    prompts leave open: the answer comes when the thought has ended. With `alone`, the panels
    of the members by themselves, each has a thought of its own. `said` is the prompt as the pivot
    reads it, in bytes, for drafts. What is told of each step is as `asked`.
    """

    panel: Panel
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    sink: Sink = lambda _: None
    sampler: SamplerMaker | None = None
    symbols: Sequence[int] | None = None
    asked: Request = Request("")
    scored_bytes: int = 0
    thoughts: Sequence[Thought] = ()
    alone: Sequence[Panel] = ()
    said: bytes = b""
    sequence: "TextSequence | None" = None
    #: How many tokens others will begin with, for members who keep a snapshot there.
    shared: Mapping[int, int] = field(default_factory=dict)
    #: Whether nothing more will come: the answer ended, failed, or was cancelled.
    done: bool = False

    def __post_init__(self) -> None:
        """Let the prompts be compared quickly with what the caches hold."""
        self.prompts = [as_row(prompt) for prompt in self.prompts]

    @property
    def prompt_of(self) -> dict[int, Sequence[int]]:
        """The prompts by the numbers of their members."""
        return dict(zip(self.panel.members, self.prompts, strict=True))

    @property
    def reads(self) -> bool:
        """Whether it is in a slot and still at its prompt."""
        return self.sequence is not None and self.sequence.steps == 0 and not self.done

    @property
    def share_read(self) -> float:
        """The share of the prompts that the members have read, from 0 to 1."""
        return float(self.done) if self.sequence is None else self.sequence.share_read
