"""Chains of headers without a ledger: sets that change as a test says, forks by whom it says."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from bundle_kit import Party, party

from consensus.attacks import Decided
from consensus.certificate import PRECOMMIT, make_certificate, vote_body
from consensus.header import Header
from consensus.primitives import merkle
from consensus.primitives.digest import sha256, signing_bytes
from consensus.skipping import LightBlock
from consensus.validators import ValidatorSet

CHAIN_ID = sha256(b"light kit")
START_MS = 1_700_000_000_000
STEP_MS = 1_000
FOUR = {"a": 1, "b": 1, "c": 1, "d": 1}

Powers = Mapping[str, int]


@cache
def one(name: str) -> Party:
    return party(f"light {name}")


@cache
def key_of(name: str) -> bytes:
    return one(name).key


@cache
def _by_key(keys: tuple[str, ...]) -> dict[bytes, str]:
    return {key_of(name): name for name in keys}


def a_set(powers: Powers) -> ValidatorSet:
    return ValidatorSet.found({key_of(name): power for name, power in powers.items()})


def certify(
    header: Header, powers: Powers, signers: Iterable[str] | None = None, round: int = 0
) -> Any:
    """The commit of `header` by `signers`, all of the set by default."""
    validators, block_id = a_set(powers), header.block_id()
    body = vote_body(PRECOMMIT, header.height, round, block_id)
    message = signing_bytes(b"vote", header.chain_id, body)
    names = _by_key(tuple(sorted(powers)))
    wanted = set(powers if signers is None else signers)
    signed = {
        place: one(names[member.key]).sign(message)
        for place, member in enumerate(validators.members)
        if names[member.key] in wanted
    }
    return make_certificate(PRECOMMIT, header.height, round, block_id, signed, len(validators))


def light_block(
    header: Header,
    powers: Powers,
    following: Powers | None = None,
    signers: Iterable[str] | None = None,
    round: int = 0,
) -> LightBlock:
    """`header` with hashes of these sets, signed."""
    after = powers if following is None else following
    header = header._replace(
        validators_hash=a_set(powers).hash(), next_validators_hash=a_set(after).hash()
    )
    commit = certify(header, powers, signers, round)
    return LightBlock(header, commit, a_set(powers), a_set(after))


class LightChain:
    """`length` blocks, one a second; `sets(height)` signs a height.

    `signers` names who signs (default: all); `branch` blocks carry its mark in `txs_root`, and
    `fields` replace a header's own from `branch_at` on.
    """

    def __init__(
        self,
        length: int,
        sets: Callable[[int], Powers] = lambda height: FOUR,
        *,
        signers: Callable[[int], Iterable[str] | None] = lambda height: None,
    ) -> None:
        self.sets = sets
        self.blocks: list[LightBlock] = []
        self.history = merkle.Frontier()
        self._grow(length, signers, {}, 0)

    def _grow(
        self,
        length: int,
        signers: Callable[[int], Iterable[str] | None],
        fields: Mapping[str, Any],
        round: int,
    ) -> None:
        while len(self.blocks) < length:
            height = len(self.blocks) + 1
            parent = self.blocks[-1].block_id if self.blocks else CHAIN_ID
            header = Header(
                version=1,
                app_version=1,
                chain_id=CHAIN_ID,
                height=height,
                time_ms=START_MS + height * STEP_MS,
                parent_id=parent,
                proposer=key_of(min(self.sets(height))),
                validators_hash=bytes(32),
                next_validators_hash=bytes(32),
                params_hash=b"\1" * 32,
                state_root=b"\2" * 32,
                txs_root=merkle.EMPTY_ROOT,
                bundles_root=merkle.EMPTY_ROOT,
                payouts_root=merkle.EMPTY_ROOT,
                evidence_root=merkle.EMPTY_ROOT,
                last_commit_hash=bytes(32),
                history_root=self.history.root(),
                supply=10**18,
            )._replace(**fields)
            made = light_block(
                header, self.sets(height), self.sets(height + 1), signers(height), round
            )
            self.history.append(made.block_id)
            self.blocks.append(made)

    def at(self, height: int) -> LightBlock:
        """0 is the newest."""
        return self.blocks[height - 1]

    def decided(self, height: int) -> Decided:
        """As a full node of this chain holds a block."""
        block = self.at(height)
        return Decided(block.header, block.certificate, block.validators)

    @property
    def height(self) -> int:
        return len(self.blocks)

    def fork(
        self,
        above: int,
        length: int,
        *,
        sets: Callable[[int], Powers] | None = None,
        signers: Callable[[int], Iterable[str] | None] = lambda height: None,
        round: int = 0,
        **fields: Any,
    ) -> "LightChain":
        """Another chain with our blocks up to `above`, then its own, with `fields` in each."""
        made = LightChain(0, sets or self.sets)
        made.blocks = self.blocks[:above]
        for block in made.blocks:
            made.history.append(block.block_id)
        made._grow(length, signers, fields, round)
        return made


def now_of(block: LightBlock, later_ms: int = STEP_MS) -> int:
    return block.header.time_ms + later_ms


def with_header(block: LightBlock, **fields: Any) -> LightBlock:
    """The block with other header fields; its certificate is still of the old header."""
    return replace(block, header=block.header._replace(**fields))
