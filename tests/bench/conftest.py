"""What several tests of benches share: a base that takes half a minute to train."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The attribution bench's small world's, as `attribution_study.Base`: nobody changes it."""
    from bench.attribution_study import make_base
    from bench.attribution_world import SMALL

    return make_base(SMALL, tmp_path_factory.mktemp("small"))
