from __future__ import annotations

from collections.abc import Iterator

import pytest
from batches import fake_ensemble, fake_spec
from servers import Client, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server on two fake models; some modules have one on others."""
    spec = fake_spec(tmp_path_factory.mktemp("fake"))
    with serving(lambda: fake_ensemble(spec)) as client:
        yield client
