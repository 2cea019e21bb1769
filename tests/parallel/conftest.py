"""Models, exports and what one rank gives, made once for all tests of a run."""

from __future__ import annotations

import pytest
from layout_check import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("layouts"), num_new=12)
