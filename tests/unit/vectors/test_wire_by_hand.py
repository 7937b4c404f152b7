"""Whoever follows p2p/WIRE.md by hand comes to the same: msgpack, SHA-256 and Ed25519 alone.

Nothing of `p2p` and `node` is imported here: it is what a peer in another language has to write.
"""

import hashlib
from typing import Any

import msgpack
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from vectors.example import CHAIN as VECTORS_CHAIN
from vectors.market import PAYER, PROVIDER
from vectors.peers import peer_examples

CHUNK_BYTES = 1 << 20


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def opened(frame: bytes) -> Any:
    """Section 2: length, body, and no other form of the same value."""
    length, body = int.from_bytes(frame[:4], "big"), frame[4:]
    assert length == len(body)
    return read(body)


def read(raw: bytes) -> Any:
    value = msgpack.unpackb(raw)
    assert msgpack.packb(value, use_bin_type=True) == raw
    return value


def asked(name: str) -> Any:
    return opened(peer_examples()[name][0].raw)


def answered(name: str) -> Any:
    code, retry_ms, body = opened(peer_examples()[name][1].raw)
    assert (code, retry_ms) == (0, 0)
    return read(body)


def gossiped(name: str) -> Any:
    return read(peer_examples()[name][0].raw)


CHAIN: bytes = asked("status")[1]
SERVER: bytes = answered("status")[9][0][1]


def is_signed(key: bytes, tag: bytes, signed: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(key).verify(b"olnode/1/" + tag + b"\0" + CHAIN + signed, signature)
    except BadSignatureError:
        return False
    return True


def climb(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """RFC 6962 upwards: an odd node at the right edge moves up as it is."""
    here, rest = sha(b"\0", leaf), iter(path)
    while size > 1:
        if index % 2:
            here = sha(b"\1", next(rest), here)
        elif index + 1 < size:
            here = sha(b"\1", here, next(rest))
        index, size = index // 2, (size + 1) // 2
    assert next(rest, None) is None
    return here


def root(hashes: list[bytes]) -> bytes:
    while len(hashes) > 1:
        pairs = zip(hashes[::2], hashes[1::2], strict=False)
        hashes = [sha(b"\1", a, b) for a, b in pairs] + hashes[len(hashes) & ~1 :]
    return hashes[0]


def block_id(header: list[Any]) -> bytes:
    leaves = [
        bytes([number]) + (value if isinstance(value, bytes) else value.to_bytes(8, "big"))
        for number, value in enumerate(header)
    ]
    return root([sha(b"\0", leaf) for leaf in leaves])


def check_commit(certificate: list[Any], block: bytes, members: list[Any]) -> None:
    """More than 2/3 of the power has signed this block."""
    kind, height, round, named, bitmap, signatures = certificate
    assert (kind, named) == (2, block)
    vote = bytes([2]) + height.to_bytes(8, "big") + round.to_bytes(4, "big") + block
    bits = int.from_bytes(bitmap, "little")
    signers = [member for place, member in enumerate(members) if bits >> place & 1]
    for place, (key, _) in enumerate(signers):
        assert is_signed(key, b"vote", vote, signatures[64 * place : 64 * place + 64])
    assert 3 * sum(power for _, power in signers) > 2 * sum(power for _, power in members)


def test_a_status_tells_who_the_peer_is_and_whom_it_validates_for() -> None:
    for status in (asked("status"), answered("status")):
        version, chain_id, *_, (body, signature) = status
        assert (version, chain_id) == (1, CHAIN)
        _, peer_key, seq_ms, addresses, _, binding = body
        assert is_signed(peer_key, b"address", msgpack.packb(body), signature)
        assert addresses[0].startswith(b"/ip")
        validator, peer, told_ms, signature = read(binding)
        assert (peer, told_ms) == (peer_key, seq_ms)
        assert is_signed(validator, b"peer", msgpack.packb([validator, peer, told_ms]), signature)


def test_a_third_peers_record_is_its_own() -> None:
    ((body, signature),) = answered("peers")
    assert body[1] not in (SERVER, asked("status")[9][0][1])
    assert is_signed(body[1], b"address", msgpack.packb(body), signature)


def test_a_ping_comes_back() -> None:
    assert answered("ping") == asked("ping")


def test_a_light_block_is_signed_by_the_set_that_its_header_names() -> None:
    header, certificate, validators, _ = map(read, answered("light 0"))
    assert header[3] == asked("light 0")[1]
    check_commit(certificate, block_id(header), validators)


def test_blocks_and_headers_carry_what_others_signed_of_them() -> None:
    members = read(answered("light 0")[2])
    _, start, count = asked("blocks 0")
    for height, (block, certificate) in zip(
        range(start, start + count), answered("blocks 0"), strict=True
    ):
        header = read(read(block)[0])
        assert header[3] == height
        check_commit(read(certificate), block_id(header), members)
    (block,) = answered("blocks 1")
    assert block_id(read(read(block)[0])) == asked("blocks 1")[1]
    start, count, stride = asked("headers")
    told = answered("headers")
    assert [read(header)[3] for header, _ in told] == [start + i * stride for i in range(count)]
    for header, certificate in told:
        check_commit(read(certificate), block_id(read(header)), members)


def test_the_past_hangs_under_a_newer_header() -> None:
    newest = read(answered("light 0")[0])
    history_root = newest[16]
    _, height, at = asked("light 3")
    block, path = answered("light 3")
    assert at == newest[3]
    assert climb(block, height - 1, at - 1, path) == history_root
    past, following, path = answered("light 5")
    header, certificate, validators, _ = map(read, read(past))
    assert block_id(header) == block
    check_commit(read(read(past)[1]), block, validators)
    after = read(following)
    assert after[5] == block
    assert after[15] == sha(msgpack.packb(certificate))
    assert climb(block_id(after), after[3] - 1, at - 1, path) == history_root


def test_a_lie_is_a_second_block_of_a_height_that_enough_have_signed() -> None:
    kind, common, forged = read(asked("light 4")[1])
    header, certificate, validators, _ = map(read, read(forged))
    assert (kind, header[3]) == (3, common + 1)
    check_commit(certificate, block_id(header), validators)
    assert block_id(header) != read(read(answered("blocks 0")[0][0])[0])[5]
    assert answered("light 4") == []


def test_bundles_are_named_by_their_headers_and_signed() -> None:
    (bundle,) = answered("bundles 0")
    header, signature, body = read(bundle)
    assert [sha(header)] == asked("bundles 0")[1]
    kind, told, told_signature, told_body = gossiped("gossip bundles")
    assert kind == 2
    for head, signed, whole in ((header, signature, body), (told, told_signature, told_body)):
        fields = read(head)
        assert is_signed(fields[1], b"bundle", head, signed)
        assert (fields[8], fields[9]) == (len(whole), sha(whole))
    assert gossiped("gossip bundles announced") == [2, told, told_signature, b""]
    assert sha(told) == asked("audit 1")[1] == asked("audit 4")[1]


def test_a_transaction_is_signed_by_its_sender_and_handed_over_as_gossiped() -> None:
    kind, (body, signature) = gossiped("gossip txs")
    assert kind == 1
    assert is_signed(read(body)[2], b"tx", body, signature)
    assert asked("pool") == [peer_examples()["gossip txs"][0].raw]
    assert answered("pool") == [1]


def test_an_offer_is_its_providers() -> None:
    kind, offer, signature = gossiped("gossip offers")
    assert kind == 4
    assert read(offer)[2] == SERVER
    assert is_signed(read(offer)[1], b"offer", offer, signature)
    assert answered("offers")[0][0][:69] == offer[:69]  # told later: another seq


def test_a_file_proves_its_length_and_each_chunk() -> None:
    ((name, blob_id, length),) = answered("blob 2")
    assert name == b"notes.txt"
    assert asked("blob 0")[1] == asked("blob 1")[1] == blob_id
    told, path, have = answered("blob 0")
    assert (told, have) == ([length, CHUNK_BYTES], b"\1")
    leaf = b"olnode/1/blob\0" + length.to_bytes(8, "big") + CHUNK_BYTES.to_bytes(4, "big")
    assert climb(leaf, 0, 2, path) == blob_id
    chunk, path = answered("blob 1")
    assert len(chunk) == length
    assert climb(chunk, asked("blob 1")[2] + 1, 2, path) == blob_id


def test_a_snapshot_is_of_a_signed_header_and_its_chunk_is_what_was_said() -> None:
    version, chain_id, height, state_root, chunks, *_, certificate, header, signers = read(
        answered("snapshot 0")[0]
    )
    assert (version, chain_id, height) == (1, CHAIN, asked("snapshot 1")[1])
    assert (read(header)[3], read(header)[10]) == (height, state_root)
    check_commit(read(certificate), block_id(read(header)), read(signers))
    (chunk,) = answered("snapshot 1")
    assert chunks == [[sha(chunk), len(chunk)]]
    keys = [key for key, _ in read(chunk)]
    assert keys == sorted(set(keys))


def test_what_is_refused_says_what_is_held() -> None:
    code, retry_ms, body = opened(peer_examples()["light refused"][1].raw)
    assert (code, retry_ms) == (2, 0)
    assert read(body) == [1, asked("light refused")[1] - 1]


def test_consensus_says_the_same_by_stream_and_by_gossip() -> None:
    for kind in (0, 2, 3, 5):
        assert gossiped(f"gossip votes {kind}") == [3, *asked(f"consensus {kind}")]
    vote = asked("consensus 2")[1]
    assert len(vote) == 111
    assert vote[13:45] == read(asked("consensus 3")[1])[3]


def test_an_answer_is_bound_to_its_order() -> None:
    _, order, prompt, sampling, nonce, voucher, _ = asked("infer start")
    _, payer_nonce = asked("infer reveal")
    _, order_hash, provider_nonce, _, _ = asked("infer accepted")
    assert nonce == b""
    assert sha(order) == order_hash == read(voucher)[8]
    fields = read(order)
    salt16 = fields[11]
    assert fields[6] == sha(sampling)
    assert fields[5] == sha(b"olnode/1/prompt\0", salt16, prompt)
    assert fields[7] == sha(b"olnode/1/seedcommit\0", payer_nonce)
    _, receipt, _, credits, *_ = asked("infer finish")
    assert read(receipt)[4] == order_hash
    assert read(receipt)[11] == sha(credits)
    assert sum(share for _, share in read(credits)) == 10_000
    _, _, start, ids, _ = asked("infer tokens")
    place = (0).to_bytes(4, "big") + start.to_bytes(4, "big")  # the vectors' receipt: of choice 0
    leaves = salt16 + payer_nonce + provider_nonce, salt16 + place + ids
    assert read(receipt)[10] == root([sha(b"\0", leaf) for leaf in leaves])


def test_a_voucher_names_its_channel_and_what_came_before() -> None:
    _, channel, lane, seq, _, _, accumulator, *_ = read(asked("infer voucher")[1])
    opened_by = (7).to_bytes(8, "big")  # the nonce of the vectors' channel
    assert channel == sha(b"olnode/1/chan\0", VECTORS_CHAIN, PAYER.key, PROVIDER.key, opened_by)
    assert seq == 1
    assert accumulator == sha(b"olnode/1/acc\0", channel, lane.to_bytes(2, "big"))
    _, _, _, voucher, signature = asked("infer refused")
    signed = b"olnode/1/voucher\0" + VECTORS_CHAIN + voucher
    assert VerifyKey(PAYER.key).verify(signed, signature) == signed
