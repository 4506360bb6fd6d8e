"""English text of any length that does not repeat itself, for measurements."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice

_WHO = ("The keeper", "A young teacher", "The old captain", "My neighbour", "The mayor", "A guest")
_DID = ("wrote down", "remembered", "described", "forgot to mention", "wondered about", "counted")
_WHAT = ("the weather", "three fishing boats", "a letter from the north", "the price of bread")
_WHEN = ("in the morning", "before the storm came", "on the second day", "after a long walk")
_WHY = ("because nobody had asked", "although it was late", "and closed the door", "as usual")


def words(seed: int) -> Iterator[str]:
    """Yield words without end; the same `seed` gives the same, another begins differently."""
    chosen = random.Random(seed)
    yield from f"Chapter {seed + 1}.".split()
    while True:
        sentence = " ".join(chosen.choice(part) for part in (_WHO, _DID, _WHAT, _WHEN, _WHY))
        yield from f"{sentence}, {chosen.randint(2, 99)} times.".split()


def passage(n_tokens: int, count: Callable[[str], int], seed: int = 0) -> str:
    """Return the longest text of at most `n_tokens` tokens, at least one word, by `count`."""
    source = words(seed)
    found = [next(source)]
    while count(" ".join(found)) <= n_tokens:
        found += islice(source, len(found))
    texts = range(len(found))
    longer = bisect_right(texts, n_tokens, lo=2, key=lambda n: count(" ".join(found[:n])))
    return " ".join(found[: longer - 1])
