"""A whole story in a home that is closed, and what it takes to open it again."""

from pathlib import Path

from chain_kit import PAYER, golden_answer
from stored_kit import CREDITS, GENESIS, Stored

from node.storage.chain import Chain


class Told:
    """The whole story, up to a settled receipt, in a home that is then closed."""

    def __init__(self, home: Path) -> None:
        made = Stored(home)
        made.tell_story()
        session = made.open_channel()
        self.receipt = golden_answer(session, CREDITS)
        self.bundle = made.bundle(session)
        made.block(bundles=(self.bundle,))
        made.block(made.pay())
        self.decided, self.height = made.decided, made.chain.height
        self.tip = made.chain.tip
        made.chain.close()


def reopen(home: Path) -> Chain:
    return Chain.open(home, GENESIS)


def balances(chain: Chain) -> int:
    return chain.state().account(PAYER.key).balance
