"""The operator's addresses are read before the home is opened: a slip is a sentence, exit 78."""

from typing import Any

import pytest

from node.config import ConfigError, P2p, Serving
from node.ledger.addresses import account_text
from node.precheck import check_addresses, rotated_account

PEER = "12D3KooWBYTaKHQpei9huCYh4uwaMDCBTFryrJK7iVYH7ep2mp52"
GOOD = f"/ip4/127.0.0.1/tcp/7017/p2p/{PEER}"
WRONG = [
    ("listen", "/ip4/0.0.0.0/tcp/99999"),
    ("listen", "/ip4/999.1.1.1/tcp/1"),
    ("listen", "/foo/tcp/1"),
    ("announce", "/tcp/1"),
    ("announce", "/ip4/192.168.1.7/tcp/7017"),
    ("announce", "/dns4/node.example.org/tcp/7017"),
    ("bootstrap", "/ip4/127.0.0.1/tcp/7017"),
    ("bootstrap", GOOD.replace("p2p", "p2q")),
    ("reserved", "nope"),
    ("deny", "x y"),
    ("deny", "1.2.3.4.5"),
]


@pytest.mark.parametrize(("key", "text"), WRONG)
def test_address_that_is_none_is_a_fault_of_the_config(key: str, text: str) -> None:
    told: Any = {key: (text,)}
    with pytest.raises(ConfigError, match=rf"^\[p2p\] {key}: ") as fault:
        check_addresses(P2p(**told))
    assert (fault.value.exit_status, key in fault.value.mend) == (78, True)


def test_good_addresses_and_the_defaults_pass() -> None:
    check_addresses(P2p())
    check_addresses(P2p(bootstrap=(GOOD,), reserved=(GOOD,), deny=("10.0.0.0/8", PEER)))
    check_addresses(P2p(announce=("/ip4/8.8.8.8/tcp/7017",)))
    check_addresses(P2p(announce=("/ip4/192.168.1.7/tcp/7017",), network="lan"))


def test_node_serves_as_its_own_account_or_as_the_one_rotated_to_its_key() -> None:
    other = b"\2" * 32
    assert rotated_account(Serving()) is None
    assert rotated_account(Serving(account=account_text(other))) == other


def test_account_that_is_none_is_a_fault_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"^\[serving\] account: ") as fault:
        rotated_account(Serving(account="open1x"))
    assert (fault.value.exit_status, "account" in fault.value.mend) == (78, True)
