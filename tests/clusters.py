"""What the tests of a Ray cluster have in common."""

from __future__ import annotations

import importlib.util

import pytest

#: Marks of the modules that use Ray, whose own warnings are many.
WITH_RAY = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is an extra: pip install 'eva-local[ray]'",
    ),
    pytest.mark.filterwarnings("ignore"),
]
