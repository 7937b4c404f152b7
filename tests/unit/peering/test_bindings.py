"""Bindings of a validator's key to a node: whose word it is, about whom, and which one counts."""

from collections.abc import Mapping
from typing import Any

import pytest
from bundle_kit import CHAIN, Party, party

from consensus.primitives.digest import signing_bytes
from consensus.primitives.encoding import encode
from consensus.primitives.errors import Invalid
from node.peering.bindings import (
    BINDING_BYTES_MAX,
    Binding,
    find_validator,
    is_binding,
    make_binding,
    read_binding,
    runs_one_of,
)
from p2p.peers import PeerId

ALICE, BOB = party("alice"), party("bob")
HOME, ELSEWHERE = party("home").key, party("elsewhere").key


def binding(
    who: Party = ALICE, peer: bytes = HOME, seq_ms: int = 5, by: Party | None = None,
    chain_id: bytes = CHAIN,
) -> bytes:  # fmt: skip
    signer = by or who
    return make_binding(
        who.key, peer, seq_ms, lambda tag, body: signer.sign(signing_bytes(tag, chain_id, body))
    )


def refused(peer: bytes, raw: bytes) -> str:
    with pytest.raises(Invalid) as refusal:
        read_binding(CHAIN, peer, raw)
    assert not is_binding(CHAIN, peer, raw)
    return refusal.value.code


def test_binding_says_who_runs_where_and_fits() -> None:
    raw = binding(seq_ms=2**63 - 1)
    read = read_binding(CHAIN, HOME, raw)
    assert (read.validator, read.peer, read.seq_ms) == (ALICE.key, HOME, 2**63 - 1)
    assert is_binding(CHAIN, HOME, raw)
    assert len(raw) <= BINDING_BYTES_MAX


def test_nobody_carries_the_binding_of_another_node() -> None:
    assert refused(ELSEWHERE, binding()) == "binding.peer"


@pytest.mark.parametrize(
    "raw",
    [
        binding(by=BOB),
        binding(chain_id=b"d" * 32),
        encode((*Binding(ALICE.key, HOME, 5, b"")[:3], bytes(64))),
    ],
    ids=["signed by another", "of another chain", "not signed"],
)
def test_only_the_key_itself_says_where_it_runs(raw: bytes) -> None:
    assert refused(HOME, raw) == "binding.signature"


@pytest.mark.parametrize("place", range(3))
def test_every_field_is_signed(place: int) -> None:
    fields = list(read_binding(CHAIN, HOME, binding()))
    fields[place] = (BOB.key, ELSEWHERE, 6)[place]
    raw = encode(tuple(fields))
    peer = ELSEWHERE if place == 1 else HOME
    assert refused(peer, raw) == "binding.signature"


def test_garbage_is_refused_and_nothing_else_happens() -> None:
    raw = binding()
    assert refused(HOME, raw + b"\0") == "binding.malformed"
    assert refused(HOME, bytes(BINDING_BYTES_MAX + 1)) == "binding.too_large"
    for length in range(len(raw)):
        assert refused(HOME, raw[:length]) == "binding.malformed"


@pytest.mark.parametrize(
    ("desc", "told", "peer", "expected"),
    [
        ("its newest", {"home": binding()}, HOME, True),
        ("a stranger", {"home": binding()}, ELSEWHERE, False),
        ("another's binding", {"home": binding(BOB)}, HOME, False),
        ("moved since", {"home": binding(), "elsewhere": binding(peer=ELSEWHERE, seq_ms=6)},
         HOME, False),
        ("moved here", {"home": binding(), "elsewhere": binding(peer=ELSEWHERE, seq_ms=6)},
         ELSEWHERE, True),
    ],
)  # fmt: skip
def test_a_peer_runs_a_validator_by_its_newest_binding(
    desc: str, told: dict[str, bytes], peer: bytes, expected: bool
) -> None:
    network: Any = Told(**told)
    assert runs_one_of(network, CHAIN, PeerId(peer), {ALICE.key}) is expected, desc


def test_of_a_stranger_no_binding_is_decoded() -> None:
    """It may ask twice a second, of 64 receipts each: by 67 validators, half a core each time."""
    network: Any = Told(home=b"\xff")  # it would raise
    assert not runs_one_of(network, CHAIN, PeerId(ELSEWHERE), {ALICE.key})


class Told:
    """A network that has judged these bindings good."""

    def __init__(self, **by_name: bytes) -> None:
        self._by_name = by_name

    def bindings(self) -> Mapping[bytes, bytes]:
        return {party(name).key: raw for name, raw in self._by_name.items()}


def find(network: Any, who: Party) -> bytes | None:
    return find_validator(network, CHAIN, who.key)


def test_newest_binding_says_where_a_validator_runs() -> None:
    old, new = binding(seq_ms=5), binding(peer=ELSEWHERE, seq_ms=6)
    assert find(Told(home=old, elsewhere=new), ALICE) == ELSEWHERE
    assert find(Told(elsewhere=new, home=old), ALICE) == ELSEWHERE
    assert find(Told(home=old), ALICE) == HOME


def test_nobody_is_found_for_a_key_that_nobody_speaks_for() -> None:
    assert find(Told(), ALICE) is None
    assert find(Told(home=binding(BOB)), ALICE) is None
