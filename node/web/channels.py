"""Payment channels as answers: one by its id, or those of an account.

Why the newest alone: the ledger keeps no list of channels by account, so all of them are looked at;
a provider may have thousands, and who asks wants those that are used.
What it does not know: HTTP, lanes.
"""

from typing import Final

from node.ledger import tables
from node.ledger.rules.accounts import current_key
from node.ledger.state import State
from node.light import CHANNEL_STATES
from node.storage.views import View
from node.web import answers

CHANNELS_TOLD_MAX: Final = 100  # of one account


def find_channel(view: View, channel: bytes) -> answers.ChannelAnswer | None:
    """A channel until it is forgotten, some days after its end."""
    state = view.state()
    found = state.find(tables.CHANNEL, channel)
    return None if found is None else _answer(state, channel, found)


def list_channels(view: View, account: bytes) -> answers.ChannelList:
    """The channels that `account` pays, serves or spends from, newest first."""
    state = view.state()
    mine = [
        (channel, found)
        for (channel,), found in state.scan(tables.CHANNEL)
        if account in (found.payer, found.provider, found.spender)
    ]
    mine.sort(key=lambda one: (-one[1].opened_ms, one[0]))
    told = tuple(_answer(state, *one) for one in mine[:CHANNELS_TOLD_MAX])
    return answers.ChannelList(told, len(mine) - len(told))


def _answer(state: State, channel: bytes, found: tables.Channel) -> answers.ChannelAnswer:
    return answers.ChannelAnswer(
        channel=channel,
        payer=found.payer,
        payer_key=current_key(state, found.payer),
        provider=found.provider,
        provider_key=current_key(state, found.provider),
        spender=found.spender,
        cap=found.cap,
        paid=found.paid,
        state=CHANNEL_STATES[found.state],
        opened_ms=found.opened_ms,
        close_at_ms=found.close_at_ms,
    )
