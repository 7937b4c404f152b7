"""A past block is believed by hashes alone, and each part of it only as the next block tells."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from light_kit import FOUR, LightChain, Powers, a_set, certify, key_of, light_block

from consensus.certificate import encode_certificate
from consensus.header import Header
from consensus.pastblocks import (
    PastBlock,
    decode_past_block,
    encode_past_block,
    verify_past_block,
)
from consensus.primitives import merkle
from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from consensus.skipping import LightBlock

LENGTH, HEIGHT = 12, 5


def sets(height: int) -> Powers:
    return FOUR if height < 7 else {**FOUR, "e": 2}


class Chained(LightChain):
    """As a real chain: each header names the certificate that decided the block before it."""

    def __init__(self) -> None:
        super().__init__(0, sets)
        last = b""
        for height in range(1, LENGTH + 1):
            self._grow(height, lambda _: None, {"last_commit_hash": sha256(last)}, 0)
            last = encode_certificate(self.blocks[-1].certificate)

    def past(self, height: int, at: int) -> PastBlock:
        ids = [block.block_id for block in self.blocks[: at - 1]]
        path = merkle.prove(ids, height) if height + 1 < at else ()
        return PastBlock(self.at(height), self.at(height + 1).header, path)


CHAIN = Chained()
TRUSTED = CHAIN.at(LENGTH).header


@pytest.mark.parametrize("height", range(1, LENGTH))
def test_every_older_block_is_believed(height: int) -> None:
    past = CHAIN.past(height, LENGTH)
    verify_past_block(past, height, TRUSTED)
    again = decode_past_block(encode_past_block(past))  # but for the priorities of its sets
    verify_past_block(again, height, TRUSTED)
    assert encode_past_block(again) == encode_past_block(past)


def with_block(past: PastBlock, **fields: object) -> PastBlock:
    return past._replace(block=replace(past.block, **fields))  # type: ignore[arg-type]


def other_header(past: PastBlock) -> PastBlock:
    return with_block(past, header=past.block.header._replace(supply=1))


def fewer_signers(past: PastBlock) -> PastBlock:
    """A certificate of the same block that is as good, but is not the one the chain carries."""
    return with_block(past, certificate=certify(past.block.header, sets(HEIGHT), "abc"))


def other_set(past: PastBlock) -> PastBlock:
    return with_block(past, validators=a_set({**FOUR, "a": 9}))


def other_next_set(past: PastBlock) -> PastBlock:
    return with_block(past, next_validators=a_set({"a": 9}))


def forged_pair(past: PastBlock) -> PastBlock:
    """A liar's block and a header behind it that fits."""
    block: LightBlock = light_block(past.block.header._replace(supply=1), {"liar": 1})
    told = sha256(encode_certificate(block.certificate))
    behind = past.following._replace(parent_id=block.block_id, last_commit_hash=told)
    return PastBlock(block, behind, past.path)


def other_proposer(past: PastBlock) -> PastBlock:
    return past._replace(following=past.following._replace(proposer=key_of("x")))


LIES: list[tuple[Callable[[PastBlock], PastBlock], str]] = [
    (other_header, "past.parent"),
    (fewer_signers, "past.certificate"),
    (other_set, "light.validators"),
    (other_next_set, "light.next_validators"),
    (forged_pair, "merkle.root"),
    (other_proposer, "merkle.root"),
    (lambda past: past._replace(path=past.path[1:]), "merkle.path_length"),
    (lambda past: past._replace(path=()), "merkle.path_length"),
    (lambda past: CHAIN.past(HEIGHT + 1, LENGTH), "past.height"),
    (lambda past: past._replace(following=CHAIN.at(HEIGHT).header), "past.height"),
]


@pytest.mark.parametrize(("lie", "code"), LIES)
def test_lie_is_refused_with(lie: Callable[[PastBlock], PastBlock], code: str) -> None:
    with pytest.raises(Invalid, match=code.replace(".", r"\.")):
        verify_past_block(lie(CHAIN.past(HEIGHT, LENGTH)), HEIGHT, TRUSTED)


def test_block_right_before_the_trusted_one_needs_no_path_and_no_other_header() -> None:
    past = CHAIN.past(LENGTH - 1, LENGTH)
    assert past.path == ()
    false: Header = TRUSTED._replace(supply=1)
    for lie in (past._replace(following=false), past._replace(path=(bytes(32),))):
        with pytest.raises(Invalid, match=r"past\.following"):
            verify_past_block(lie, LENGTH - 1, TRUSTED)


def test_proof_under_another_header_proves_nothing() -> None:
    with pytest.raises(Invalid, match="merkle"):
        verify_past_block(CHAIN.past(HEIGHT, LENGTH - 2), HEIGHT, TRUSTED)
