"""Values of a type from plain data, and what is said of data that do not fit it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from eva_local.reading import (
    Amount,
    ReadError,
    Scale,
    UnknownKeyError,
    Whole,
    Words,
    lean,
    meant,
    read,
    settle,
)


class Leaf(Struct, forbid_unknown_fields=True):
    name: Words
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Cat(Struct, tag_field="type", tag="cat", forbid_unknown_fields=True):
    lives: Annotated[int, Meta(ge=1, le=9)] = 9


class Dog(Struct, tag_field="type", tag="dog"):
    tricks: list[str]


class Tree(Struct, forbid_unknown_fields=True):
    leaves: list[Leaf] = []
    leaf: Leaf | None = None
    pet: Annotated[Cat | Dog | None, Meta(description="a cat or a dog")] = None
    size: Whole = 0
    scale: Scale = 1.0
    rule: Literal["b", "a"] | tuple[Amount, ...] = "a"
    spoken: Annotated[str | list[Whole], Meta(description="a text or ids")] = ""
    named: dict[str, int] = {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "is no JSON object"),
        ({"size": -1}, "size must be at least 0, not -1"),
        ({"size": True}, "size must be a whole number, not true"),
        ({"size": "x" * 100}, f"size must be a whole number, not '{'x' * 59}…"),
        ({"scale": 0}, "scale must be above 0, not 0"),
        ({"scale": float("inf")}, "scale must be a number, not inf"),
        ({"scale": 10**400}, f"scale must be a number, not 1{'0' * 59}…"),
        ({"rule": "c"}, 'rule must be "a" or "b" or a list of numbers, not \'c\''),
        ({"rule": [1, -1]}, "rule[1] must be at least 0, not -1"),
        ({"leaves": [{"name": "a"}, {"name": ""}]}, "leaves[1].name must be a text that is not"),
        ({"leaves": [{"share": 1}]}, "leaves[0].name is missing"),
        ({"leaves": [{"name": "a", "share": 2}]}, "leaves[0].share must be in (0, 1], not 2"),
        ({"leaves": ["a"]}, "leaves[0] is no JSON object"),
        ({"leaves": {}}, "leaves must be a list of objects, not {}"),
        ({"leaf": {"name": "a", "nmae": "b"}}, "unknown option 'leaf.nmae'; did you mean name?"),
        ({"pet": {"type": "cow"}}, "pet must be a cat or a dog, not {'type': 'cow'}"),
        ({"pet": {"type": "cat", "lives": 10}}, "pet.lives must be from 1 to 9, not 10"),
        ({"pet": {"type": "cat", "tricks": []}}, "unknown option 'pet.tricks'; known are: lives"),
        ({"pet": {"type": "dog"}}, "pet.tricks is missing"),
        ({"spoken": [1, "a"]}, "spoken must be a text or ids, not [1, 'a']"),
        ({"named": {"a": "b"}}, "named must be an object, not {'a': 'b'}"),
        ({"a - at `$.size`": 1}, "unknown option 'a - at `$.size`'; known are: "),
        ({"rule": "a - at `$.leaf.name"}, 'rule must be "a" or "b" or'),
        ({"\ud800": 1}, "holds half a surrogate pair, which is no text"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(value, message) -> None:
    with pytest.raises(ReadError) as caught:
        read(value, Tree)
    assert str(caught.value).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Tree.__struct_fields__, "type", "name"]), inner)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(Tree.__struct_fields__), JSON, min_size=1))
def test_any_data_are_read_or_refused_in_one_line(value) -> None:
    path, message = next(iter(value)), ""
    try:
        read(lean(value, Tree), Tree)
    except ReadError as error:
        path, message = error.path, str(error)
    assert path.partition("[")[0].partition(".")[0] in value
    assert "\n" not in message


def test_an_error_tells_the_place_and_the_problem_apart() -> None:
    with pytest.raises(ReadError) as caught:
        read([{"name": ""}], list[Leaf], "row")
    assert caught.value.path == "row[0].name"
    assert caught.value.problem == "must be a text that is not empty, not ''"
    with pytest.raises(UnknownKeyError) as unknown:
        read({"name": "a", "x": 1}, Leaf, "row")
    assert unknown.value.path == "row.x"


def test_what_asks_for_nothing_is_left_out_where_it_is_no_field() -> None:
    nothing: dict[str, Any] = {"a": None, "b": "", "c": [], "d": {}}
    value = {"leaves": [{"name": "", "share": None, **nothing}], "pet": {"type": "cat", **nothing}}
    assert lean(value, Tree) == {"leaves": [{"name": ""}], "pet": {"type": "cat"}}
    for something in (0, False, " ", [None]):
        assert lean({"x": something}, Tree) == {"x": something}


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("7", int, 7),
        (" 1_000 ", int, 1000),
        ("7", float, 7.0),
        (".5", float, 0.5),
        ("7", str, "7"),
        ("ON", bool, True),
        ("0", bool, False),
        ("on", Literal["on", "off"], "on"),
        ("random", int | None, None),
        ("2", Literal["equal"] | tuple[float, ...], (2.0,)),
        ("2, 1", Literal["equal"] | tuple[float, ...], (2.0, 1.0)),
        ("equal", Literal["equal"] | tuple[float, ...], "equal"),
        ("1.5", int, "1.5"),
        ("yes", int, "yes"),
        ("9" * 5000, int, "9" * 5000),
        ("\udcff", Literal["on", "off"], "\udcff"),
    ],
)
def test_a_text_stands_for_a_value_of_the_type(text, hint, value) -> None:
    assert meant(text, hint) == value
    assert type(meant(text, hint)) is type(value)


@dataclass(frozen=True, slots=True)
class Settings:
    count: Whole = 1
    shares: tuple[Amount, ...] = ()
    names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settle(self)


def test_numbers_and_sequences_of_python_and_numpy_are_taken() -> None:
    made = Settings(np.int64(3), [np.float32(0.5), 1, np.float64(2)])  # type: ignore[arg-type]
    assert made == Settings(3, (0.5, 1.0, 2.0))
    assert [type(each) for each in (made.count, *made.shares)] == [int, float, float, float]
    assert Settings(shares=range(3)).shares == (0.0, 1.0, 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": -1}, "count must be at least 0, not -1"),
        ({"count": np.float64(1.5)}, "count must be a whole number, not 1.5"),
        ({"shares": "12"}, "shares must be a list of numbers, not '12'"),
        ({"shares": [b"1"]}, "shares[0] must be a number, not b'1'"),
        ({"shares": object()}, "shares must be a list of numbers, not <object"),
    ],
)
def test_a_wrong_value_in_python_is_named(values, message) -> None:
    with pytest.raises(ReadError) as caught:
        Settings(**values)
    assert str(caught.value).startswith(message)
