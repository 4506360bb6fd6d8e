"""The bodies that the endpoints read, as types: what `read` checks and OpenAPI describes.

Plain options of sampling are not among them; they are fields of Sampling.
"""

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, field

from eva_local.engine.conversation import ChatMessages
from eva_local.reading import Amount, Whole, Words
from eva_local.types import Thinking

#: Answers that one call can ask for at most.
MOST_ANSWERS = 128
#: Likeliest symbols that an answer can name for each symbol at most.
MOST_TOP = 20

Ids = Annotated[list[Whole], Meta(min_length=1)]
SEVERAL = "a text, a list of token ids, or a list of these"
#: One, or several; a list of numbers is one.
Several = Annotated[
    str | Annotated[list[Whole | str | Ids], Meta(min_length=1)], Meta(description=SEVERAL)
]
Top = Annotated[int, Meta(ge=0, le=MOST_TOP)]
#: none is without a thought, any other with one.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Biases = dict[str, int | float | bool]
WEIGHTS = "equal, running, or numbers from 0 up, with a sum above 0 that is finite, one for each"
MemberWeights = Annotated[
    Literal["equal", "running"] | tuple[Amount, ...] | dict[str, Amount] | None,
    Meta(description=f"{WEIGHTS} member"),
]


class TextFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Plain text."""


class ObjectFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Any JSON object, or as llama.cpp has it, what obeys the schema."""

    schema: dict[str, Any] = {}


class NamedSchema(Struct, forbid_unknown_fields=True):
    """A schema, which is obeyed whatever it is called and for, strictly or not."""

    schema: dict[str, Any]
    name: Any = None
    description: Any = None
    strict: Any = None


class SchemaFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON that obeys a schema."""

    json_schema: NamedSchema


class Options(Struct, kw_only=True, forbid_unknown_fields=True):
    """What says how an answer is drawn, and is no field of Sampling as it stands."""

    json_schema: Annotated[
        Words | dict[str, Any] | None, Meta(description="an object or a text of one")
    ] = None
    response_format: Annotated[
        TextFormat | ObjectFormat | SchemaFormat | None,
        Meta(description="of type text, json_object, or json_schema with a schema"),
    ] = None
    thinking: Thinking | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Any] = {}


class StreamOptions(Struct, forbid_unknown_fields=True):
    """OpenAI pads the parts of a stream; padding says nothing of the answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class AnswerRequest(Options, kw_only=True):
    """What both endpoints that write know; `logit_bias` names tokens by id."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_ANSWERS)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    trace: bool = False
    timings_per_token: bool = False
    disagreement: bool = False
    weights: MemberWeights = None
    logit_bias: Annotated[
        Biases | None, Meta(description="an object of token ids with a number each, or false")
    ] = None


class ChatRequest(AnswerRequest, kw_only=True):
    """A conversation that is to be answered."""

    messages: ChatMessages
    logprobs: bool = False
    top_logprobs: Top = 0
    echo: ClassVar[bool] = False

    @property
    def n_top(self) -> int | None:
        """How many likely symbols are to be named; None where nothing is told of them."""
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(AnswerRequest, kw_only=True):
    """Texts that are to be gone on with."""

    prompt: Several
    echo: bool = False
    #: As that of chats.
    n_top: Top | None = field(default=None, name="logprobs")


AnyRequest = ChatRequest | CompletionRequest


class TokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """A text that is to be cut into tokens, under any of three names; text is always text."""

    prompt: str | None = None
    content: str | None = None
    text: str | None = None
    model: str | None = None
    add_special_tokens: bool = False
    parse_special: bool = False


class DetokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Tokens whose text is asked for."""

    tokens: list[Whole]
    model: str | None = None
