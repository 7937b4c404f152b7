"""What is put together for the HTTP face: what a node answers without one of its parts."""

from types import SimpleNamespace
from typing import Any

import pytest
from ledger_kit import PAYER, PROVIDER, new_state, open_channel

from consensus.primitives.errors import Invalid
from node.backend import make_backend
from node.web.answers import ReleaseAnswer
from node.web.app import Backend


def backend_without_a_shop(state: Any, *own: bytes) -> Backend:
    nobody: Any = None
    telling: Any = SimpleNamespace(
        find_pending=None, count_providers=None, status=None, checks=None, models=None
    )
    chain: Any = SimpleNamespace(view=None, state=lambda: state)
    part: Any = SimpleNamespace(find_shares=None, check=None, audit=None, submit_transaction=None)
    return make_backend(
        chain=chain, peers=nobody, telling=telling, relay=part, reasons=part,
        checker=part, auditor=part, store=nobody,
        shop=None, purse=None, own_providers=own, own_validator=None, next_nonce=nobody,
        stop=nobody,
    )  # fmt: skip


async def test_channel_of_ours_is_not_released_while_the_role_is_off() -> None:
    """Its receipts lie in a book that is not open: told that nothing waits to be settled, the
    command would sign a close that gives them up."""
    state = new_state()
    channel = open_channel(state)
    backend = backend_without_a_shop(state, PAYER.key, PROVIDER.key)
    with pytest.raises(Invalid) as refused:
        await backend.release(channel)
    assert refused.value.code == "channel.role_is_off"
    other = backend_without_a_shop(state, PAYER.key)
    assert await other.release(channel) == ReleaseAnswer(channel, 0, 0, 0)
