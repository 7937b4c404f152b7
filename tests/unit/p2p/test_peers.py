"""Peer ids without libp2p, and scores: faded, banned, let in again."""

import random

import pytest

from p2p.errors import Misbehaving
from p2p.limits import BAN_FIRST_S, BAN_MAX_S, BAN_RESERVED_MAX_S, PEERS_REMEMBERED_MAX
from p2p.peers import PeerId, Scores, key_of_id_bytes, key_of_peer_id, peer_id_text

PEER = PeerId(b"p" * 32)


def test_ban_that_was_asked_for_counts_for_all_and_is_taken_back() -> None:
    scores = Scores()
    scores.ban(PEER, 3_600, 0)
    assert scores.bans(1_000) == {PEER: 2_600}
    assert not scores.penalise(PEER, 100, 1_000, reserved=True)  # it is not made shorter
    assert scores.is_banned(PEER, 3_599)
    scores.forgive(PEER)
    assert not scores.is_banned(PEER, 1_000)
    assert scores.score(PEER, 1_000) == 0
    again = Scores()
    again.restore([(PEER, 20 * 86_400)], 0)
    assert again.is_banned(PEER, 20 * 86_400 - 1)


def test_peer_id_is_libp2ps_own():
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    for number in range(20):
        pair = create_new_key_pair(bytes([number]) * 32)
        theirs = ID.from_pubkey(pair.public_key)
        key = pair.public_key.to_bytes()
        assert peer_id_text(key) == str(theirs)
        assert key_of_peer_id(str(theirs)) == key_of_id_bytes(theirs.to_bytes()) == key


def test_signature_is_the_ledgers_own():
    from libp2p.crypto.ed25519 import create_new_key_pair

    from consensus.primitives.keys import public_key, sign

    seed = b"s" * 32
    pair = create_new_key_pair(seed)
    assert pair.public_key.to_bytes() == public_key(seed)
    assert pair.private_key.sign(b"message") == sign(seed, b"message")


@pytest.mark.parametrize(
    "text", ["", "0OIl", "1" * 52, "Qm" + "a" * 44, peer_id_text(bytes(32)) + "1", "é" * 52]
)
def test_other_ids_are_refused(text):
    with pytest.raises(Misbehaving):
        key_of_peer_id(text)


def test_random_ids_raise_only_misbehaving():
    rng, good = random.Random("ids"), peer_id_text(b"k" * 32)
    for _ in range(20_000):
        letters = list(good)
        letters[rng.randrange(len(letters))] = rng.choice("123abcXYZ0l")
        try:
            key = key_of_peer_id("".join(letters))
        except Misbehaving:
            continue
        assert peer_id_text(key) == "".join(letters)


def test_points_are_halved_every_ten_minutes():
    scores = Scores()
    scores.penalise(PEER, 80, 0, reserved=False)
    assert scores.score(PEER, 0) == 80
    assert scores.score(PEER, 600) == 40
    assert scores.score(PEER, 1_200) == 20


def test_ban_begins_at_100_and_ends():
    scores = Scores()
    assert not scores.penalise(PEER, 99, 0, reserved=False)
    assert scores.penalise(PEER, 1, 0, reserved=False)
    assert scores.is_banned(PEER, BAN_FIRST_S - 1)
    assert not scores.is_banned(PEER, BAN_FIRST_S + 1)


def test_bans_double_up_to_a_day_and_shrink_with_clean_days():
    scores, now_s, lengths = Scores(), 0.0, []
    for _ in range(10):
        scores.penalise(PEER, 100, now_s, reserved=False)
        lengths.append(scores.bans(now_s)[PEER])
        now_s += lengths[-1] + 1
    assert lengths[:3] == [BAN_FIRST_S, 2 * BAN_FIRST_S, 4 * BAN_FIRST_S]
    assert max(lengths) == BAN_MAX_S
    now_s += 3 * 86_400
    scores.penalise(PEER, 100, now_s, reserved=False)
    assert scores.bans(now_s)[PEER] == BAN_MAX_S / 8


def test_reserved_peer_is_banned_for_a_minute_at_most():
    scores = Scores()
    for turn in range(5):
        scores.penalise(PEER, 100, turn * 100, reserved=True)
        assert scores.bans(turn * 100)[PEER] == BAN_RESERVED_MAX_S


def test_bans_of_the_last_run_go_on():
    scores = Scores()
    scores.restore([(PEER, 30.0)], now_s=1_000)
    assert scores.is_banned(PEER, 1_029)
    assert not scores.is_banned(PEER, 1_031)


def test_memory_of_strangers_is_bounded_and_keeps_the_guilty():
    scores = Scores()
    scores.penalise(PEER, 100, 0, reserved=False)
    for number in range(2 * PEERS_REMEMBERED_MAX):
        scores.penalise(PeerId(number.to_bytes(32, "big")), 1, 0, reserved=False)
    assert len(scores._records) <= PEERS_REMEMBERED_MAX
    assert scores.is_banned(PEER, 1)
