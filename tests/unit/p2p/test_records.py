"""Address records: only the peer itself speaks for its addresses, and no byte may differ."""

import random

import pytest

from p2p.addresses import parse_address
from p2p.errors import Misbehaving
from p2p.framing import decode, encode
from p2p.limits import ADDRESSES_MAX, BINDING_BYTES_MAX, RECORD_AGE_MS_MAX, RECORD_AHEAD_MS_MAX
from p2p.memory import _Identity
from p2p.peers import PeerId, peer_id_text
from p2p.records import make_record, read_record

ME = _Identity(PeerId(b"m" * 32))
CHAIN = b"c" * 32
NOW_MS = 1_700_000_000_000
ADDRESSES = (parse_address("/ip4/8.8.8.8/tcp/1"), parse_address("/ip4/10.0.0.1/tcp/2"))


def record_of(**changes):
    told = {"seq_ms": NOW_MS, "addresses": ADDRESSES, "roles": 3, "binding": b"b" * 100} | changes
    return make_record(ME, CHAIN, **told)


def read(value, chain=CHAIN, now_ms=NOW_MS):
    return read_record(value, ME, chain, now_ms)


def test_record_is_read_as_it_was_made():
    record = record_of()
    assert read(decode(encode(record.value), 1_024)) == record


def test_private_addresses_are_kept_but_not_used_on_a_public_network():
    assert [a.host for a in record_of().usable("public")] == ["8.8.8.8"]
    assert len(record_of().usable("lan")) == 2


def test_record_from_the_far_future_is_refused():
    assert read(record_of(seq_ms=NOW_MS + RECORD_AHEAD_MS_MAX).value)
    with pytest.raises(Misbehaving, match="future"):
        read(record_of(seq_ms=NOW_MS + RECORD_AHEAD_MS_MAX + 1).value)


def test_old_record_is_no_longer_passed_on():
    record = record_of(seq_ms=NOW_MS - RECORD_AGE_MS_MAX)
    assert record.is_fresh(NOW_MS)
    assert not record.is_fresh(NOW_MS + 1)


def test_record_of_another_chain_is_refused():
    with pytest.raises(Misbehaving, match="signed"):
        read(record_of().value, chain=b"d" * 32)


def test_largest_record_passes():
    many = tuple(parse_address(f"/ip4/8.8.8.{i}/tcp/1") for i in range(ADDRESSES_MAX))
    assert read(record_of(addresses=many, binding=bytes(BINDING_BYTES_MAX)).value)


def _signed(body):
    raw = b"olnode/1/address\0" + CHAIN + encode(body)
    return (body, ME.sign(raw))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 2),
        (1, b"short"),
        (1, b"x" * 32),
        (3, (b"/ip4/8.8.8.8/tcp/1",) * 9),
        (3, (b"/ip4/8.8.8.8/udp/1",)),
        (3, (b"\xff\xfe",)),
        (3, (7,)),
        (4, 1 << 16),
        (5, bytes(BINDING_BYTES_MAX + 1)),
        (5, 7),
    ],
)
def test_each_field_out_of_bounds_is_refused(place, value):
    body = list(record_of().value[0])
    body[place] = value
    with pytest.raises(Misbehaving):
        read(_signed(tuple(body)))


def test_address_naming_another_peer_is_refused():
    body = list(record_of().value[0])
    body[3] = (b"/ip4/8.8.8.8/tcp/1/p2p/" + peer_id_text(b"o" * 32).encode(),)
    with pytest.raises(Misbehaving, match="another peer"):
        read(_signed(tuple(body)))


def test_flipped_bits_never_pass():
    rng, raw = random.Random("records"), encode(record_of().value)
    for _ in range(20_000):
        bad = bytearray(raw)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        with pytest.raises(Misbehaving):
            read(decode(bytes(bad), 1_024))
