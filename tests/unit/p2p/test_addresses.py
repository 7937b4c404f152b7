"""Addresses: the few forms we take, and which strangers' addresses a public network refuses."""

import ipaddress
import random

import pytest

from p2p.addresses import (
    addresses_of,
    are_tellable,
    group_of,
    is_usable,
    parse_address,
    wide_group_of,
)
from p2p.errors import Misbehaving
from p2p.peers import PeerId, peer_id_text

KEY = PeerId(bytes(range(32)))
ID = peer_id_text(KEY)
OTHER = PeerId(bytes(32))
OTHER_ID = peer_id_text(OTHER)


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/1.2.3.4/tcp/4001",
        "/ip6/2001:db8::1/tcp/0",
        f"/ip4/1.2.3.4/tcp/9/p2p/{ID}",
        f"/ip4/1.2.3.4/tcp/9/p2p/{ID}/p2p-circuit",
        f"/ip6/{'1111:' * 7}1111/tcp/65535/p2p/{ID}/p2p-circuit",
    ],
)
def test_address_is_read_and_written_alike(text):
    assert parse_address(text).full_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.2.3.4:4001",
        "/ip4/1.2.3.4/udp/4001",
        "/ip4/1.2.3.4/tcp/4001/ws",
        "/ip4/1.2.3/tcp/4001",
        "/ip4/01.2.3.4/tcp/4001",
        "/ip4/::1/tcp/4001",
        "/ip6/1.2.3.4/tcp/4001",
        "/ip6/2001:0db8::1/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/01",
        "/ip4/1.2.3.4/tcp/-1",
        "/ip4/1.2.3.4/tcp/²",
        "/dns4/example.org/tcp/4001",
        "/ip4/1.2.3.4/tcp/4001/p2p/QmWrong",
        "/ip4/1.2.3.4/tcp/4001/p2p-circuit/x",
        "/ip4/1.2.3.4/tcp/4001/p2p-circuit",
        f"/ip4/1.2.3.4/tcp/4001/p2p-circuit/p2p/{ID}",
        f"/ip4/1.2.3.4/tcp/4001/p2p/{ID}/p2p-circuit/x",
        f"/ip4/1.2.3.4/tcp/4001/p2p/{ID}/p2p-circuit/p3p/{ID}",
        f"/ip4/1.2.3.4/tcp/4001/p3p/{ID}/p2p-circuit",
        "/ip4/1.2.3.4/tcp/4001/p2p/QmWrong/p2p-circuit",
        "/ip4/1.2.3.4/tcp/" + "1" * 200,
    ],
)
def test_any_other_form_is_refused(text):
    with pytest.raises(Misbehaving):
        parse_address(text)


def test_way_through_a_relay_is_the_operators_to_give_in_full():
    """A record holds it without its own id, for 128 bytes are enough for no more."""
    text = f"/ip4/1.2.3.4/tcp/9/p2p/{OTHER_ID}/p2p-circuit/p2p/{ID}"
    (address,) = addresses_of([text], with_peer=True)
    assert (address.relay, address.peer, address.full_text()) == (OTHER, KEY, text)
    with pytest.raises(ValueError, match="of a relay"):
        addresses_of([text], with_peer=False)
    with pytest.raises(Misbehaving):
        parse_address(text)


def test_names_come_only_from_the_operator():
    assert parse_address("/dns4/example.org/tcp/1", names_allowed=True).host == "example.org"
    for text in ("/dns4/exa mple/tcp/1", "/dns4//tcp/1", "/dns/example.org/tcp/1"):
        with pytest.raises(Misbehaving):
            parse_address(text, names_allowed=True)


@pytest.mark.parametrize(
    ("host", "is_public"),
    [
        ("/ip4/8.8.8.8", True),
        ("/ip4/10.0.0.1", False),
        ("/ip4/192.168.1.1", False),
        ("/ip4/127.0.0.1", False),
        ("/ip4/169.254.169.254", False),
        ("/ip4/100.64.0.1", False),
        ("/ip4/224.0.0.1", False),
        ("/ip6/2606:4700::1", True),
        ("/ip6/::1", False),
        ("/ip6/fd00::1", False),
        ("/ip6/::ffff:10.0.0.1", False),
        ("/ip6/::ffff:8.8.8.8", True),
        ("/ip6/::ffff:224.0.0.1", False),
        ("/ip6/2002:a00:1::", False),
        ("/ip6/64:ff9b::a00:1", False),
        ("/ip6/64:ff9b::808:808", True),
        ("/ip6/ff0e::1", False),
    ],
)
def test_public_network_uses_only_global_addresses(host, is_public):
    kind, text = host.split("/")[1:]
    address = parse_address(f"/{kind}/{ipaddress.ip_address(text)}/tcp/1")
    assert is_usable(address, "public") is is_public


@pytest.mark.parametrize("reach", ["lan", "devnet"])
def test_private_networks_use_private_addresses_but_never_nonsense(reach):
    assert is_usable(parse_address("/ip4/10.0.0.1/tcp/1"), reach)
    nonsense = ("0.0.0.0/tcp/1", "224.0.0.1/tcp/1", "10.0.0.1/tcp/0")
    for text in (*(f"/ip4/{x}" for x in nonsense), "/ip6/::ffff:0:0/tcp/1", "/ip6/::/tcp/1"):
        assert not is_usable(parse_address(text), reach)


def test_what_a_stranger_signed_as_a_whole_is_told_as_a_whole_or_not_at_all():
    public, private = b"/ip4/8.8.8.8/tcp/1", b"/ip4/10.0.0.1/tcp/1"
    assert are_tellable((), "public")
    assert are_tellable((public,), "public")
    assert not are_tellable((public, private), "public")
    assert are_tellable((public, private), "lan")
    for nonsense in (b"nonsense", b"\xff", b"/dns4/a.example/tcp/1"):
        assert not are_tellable((public, nonsense), "lan")


def test_operators_addresses_fail_in_one_line():
    assert addresses_of([f"/dns4/a.example/tcp/1/p2p/{ID}"], with_peer=True)[0].peer == KEY
    with pytest.raises(ValueError, match="p2p"):
        addresses_of(["/ip4/1.2.3.4/tcp/1"], with_peer=True)
    with pytest.raises(ValueError, match="nonsense"):
        addresses_of(["nonsense"], with_peer=False)


def test_groups_are_by_24_and_48_and_wide_ones_by_16_and_32():
    assert group_of("1.2.3.4") == group_of("1.2.3.200") != group_of("1.2.4.4")
    assert group_of("2001:db8:1::1") == group_of("2001:db8:1:9::1") != group_of("2001:db8:2::1")
    assert wide_group_of("1.2.3.4") == wide_group_of("1.2.9.9") != wide_group_of("1.3.3.4")
    for group in (group_of, wide_group_of):
        assert group("::ffff:1.2.3.4") == group("1.2.3.4") != group("::ffff:1.3.3.4")
    assert group_of("example.org") == wide_group_of("example.org") == "example.org"


def test_random_text_raises_only_misbehaving():
    rng = random.Random("addresses")
    good = f"/ip4/1.2.3.4/tcp/4001/p2p/{ID}"
    for _ in range(20_000):
        text = list(good)
        for _ in range(rng.randrange(1, 4)):
            text[rng.randrange(len(text))] = chr(rng.choice((47, 46, 58, 48, 57, 97, 178, 0x661)))
        try:
            address = parse_address("".join(text))
        except Misbehaving:
            continue
        assert parse_address(address.full_text()) == address
