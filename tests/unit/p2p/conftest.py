"""Each scene of the contract is played on both networks."""

import pytest
from network_kit import World


@pytest.fixture(params=["memory", "libp2p"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)
