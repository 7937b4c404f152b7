"""Bundles checked once: against the keys of the state, remembered with the keys they were checked
with.

Why: a node sees a bundle by gossip, proposes it and executes it, and its signatures cost most of
the work. What was checked stays good exactly as long as the same keys and minimum fee hold.
What this file does not know: channels' sums, prices, credits (`rules/channels.py`, at execution).
"""

from typing import NamedTuple

from node.ledger.rules import channels
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle, CheckedBundle, verify


class Admitted(NamedTuple):
    """A bundle that passed A1 to A7; `keys`: (provider or channel, key it was checked with)."""

    bundle: CheckedBundle
    header: bytes
    body_bytes: int
    keys: tuple[tuple[bytes, bytes | None], ...]
    min_receipt_fee: int


def admit_bundle(state: State, chain_id: bytes, bundle: Bundle) -> Admitted:
    """Check A1 to A7 with the keys of `state`; raises `Invalid` `bundle.…` (page 30 §8)."""
    keys: dict[bytes, bytes | None] = {}

    def provider_key(provider: bytes) -> bytes | None:
        keys[provider] = channels.find_provider_key(state, provider)
        return keys[provider]

    def spender_key(channel: bytes) -> bytes | None:
        keys[channel] = channels.find_spender_key(state, channel)
        return keys[channel]

    least = state.parameter("min_receipt_fee")
    checked = verify(
        bundle,
        chain_id=chain_id,
        provider_key=provider_key,
        spender_key=spender_key,
        min_receipt_fee=least,
    )
    return Admitted(checked, bundle.header, len(bundle.body), tuple(keys.items()), least)


def is_still_good(state: State, admitted: Admitted) -> bool:
    """Whether the keys and the minimum fee that a bundle was checked with still hold."""
    if admitted.min_receipt_fee != state.parameter("min_receipt_fee"):
        return False
    (provider, key), *channel_keys = admitted.keys
    return channels.find_provider_key(state, provider) == key and all(
        channels.find_spender_key(state, channel) == spender for channel, spender in channel_keys
    )
