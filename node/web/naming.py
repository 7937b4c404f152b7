"""Numbers of the ledger as names: kinds of payouts, models, Datanets, and whose a payee is.

Why apart: blocks, receipts and earnings tell the same things, and must tell them by one name.
What this file does not know: which answer a name goes into.
"""

from typing import Final

from node.ledger import tables
from node.ledger.state import State

KIND_NAMES: Final = {
    tables.KIND_PROVIDER: "provider",
    tables.KIND_DATA: "data",
    tables.KIND_CREATOR: "creator",
    tables.KIND_STAKERS: "stakers",
    tables.KIND_FUND: "fund",
    tables.KIND_TREASURY: "treasury",
    tables.KIND_BURN: "burn",
}


def owner_of(state: State, kind: int, payee: bytes) -> bytes | None:
    """The account behind a payee; None for funds, pools, stakers, the burn."""
    if kind in (tables.KIND_PROVIDER, tables.KIND_CREATOR):
        return payee
    number = contribution_of(kind, payee)
    return state.get(tables.CONTRIBUTION, number).contributor if number else None


def contribution_of(kind: int, payee: bytes) -> int:
    """The contribution that a payee names, or 0."""
    return int.from_bytes(payee, "big") if kind == tables.KIND_DATA else 0


def model_name(state: State, number: int) -> str:
    """Its name, or nothing for a number the ledger does not know."""
    found = state.find(tables.MODEL, number)
    return "" if found is None else found.name.decode("ascii")


def datanet_name(state: State, number: int) -> str:
    """Its name, or nothing for a number the ledger does not know."""
    found = state.find(tables.DATANET, number)
    return "" if found is None else found.name.decode("ascii")


def datanet_of(state: State, contribution: int) -> str:
    """The name of the Datanet that a contribution belongs to; nothing for contribution 0."""
    found = state.find(tables.CONTRIBUTION, contribution) if contribution else None
    return "" if found is None else datanet_name(state, found.datanet)
