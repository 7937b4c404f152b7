"""Who votes, with how much power, and whose turn it is to propose.

The rotation is CometBFT's proposer priority: each turn every member gains its power, the greatest
proposes and pays the total, so turns come in proportion to power and as evenly as they can.
Why priorities are carried in the set: a node that joined by a state snapshot must know whose turn
it is, so they live in the ledger's state and are part of its root.
What this file does not know: bonds, slashing, who wants to join.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from consensus.params import POWER_MAX, VALIDATORS_MAX
from consensus.primitives import merkle
from consensus.primitives.digest import HASH_BYTES
from consensus.primitives.encoding import U63, WIDE_BYTES, H, ListOf, Record, decode, encode
from consensus.primitives.errors import Invalid

PRIORITY_OFFSET: Final = 2**127  # priorities are signed; the ledger stores them shifted by this
WINDOW_FACTOR: Final = 2  # priorities are kept within this many totals
ENCODED_BYTES_MAX: Final = 8 * 1024

SHAPE: Final = ListOf(Record(H, U63), VALIDATORS_MAX, 1)


class Member(NamedTuple):
    """One validator; `priority` may be negative."""

    key: bytes
    power: int
    priority: int = 0


class ValidatorSet:
    """Members by (−power, key), and the key whose turn it is. Never changed once made."""

    __slots__ = ("_hash", "_index", "_proposers", "members", "total", "turn")

    def __init__(self, members: Iterable[Member], turn: bytes) -> None:
        self.members = tuple(sorted(members, key=_rank))
        self.total = sum(member.power for member in self.members)
        self.turn = turn
        self._index = {member.key: place for place, member in enumerate(self.members)}
        self._proposers: dict[int, bytes] = {0: turn}
        self._hash: bytes | None = None
        assert 0 < len(self.members) <= VALIDATORS_MAX
        assert len(self._index) == len(self.members), "a key stands twice"
        assert all(member.power > 0 for member in self.members)
        assert self.total <= POWER_MAX
        assert turn in self._index

    @staticmethod
    def found(powers: Mapping[bytes, int]) -> "ValidatorSet":
        """The first set of a chain: all priorities 0, then one advance.

        Raises `Invalid` as `changed` does.
        """
        _check_powers(powers)
        members = [Member(key, power) for key, power in powers.items()]
        return _advanced(sorted(members, key=_rank), 1)

    def __len__(self) -> int:
        return len(self.members)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ValidatorSet):
            return NotImplemented
        return self.members == other.members and self.turn == other.turn

    __hash__ = None  # type: ignore[assignment]  # compared, never a key of a table

    def index(self, key: bytes) -> int | None:
        """The place of `key` among the members, or None."""
        return self._index.get(key)

    def power(self, key: bytes) -> int:
        """Voting power of `key`; 0 for a stranger."""
        place = self._index.get(key)
        return 0 if place is None else self.members[place].power

    def powers(self) -> dict[bytes, int]:
        """Key → power, in the order of the members."""
        return {member.key: member.power for member in self.members}

    def is_quorum(self, power: int) -> bool:
        """Whether `power` is more than two thirds."""
        return 3 * power > 2 * self.total

    def is_third(self, power: int) -> bool:
        """Whether `power` is more than one third: at least one honest member is in it."""
        return 3 * power > self.total

    def proposer(self, round: int) -> bytes:
        """Whose turn round `round` is; O(members · round), remembered."""
        assert round >= 0
        known = self._proposers.get(round)
        if known is None:
            known = self._proposers[round] = self.advanced(round).turn
        return known

    def advanced(self, times: int = 1) -> "ValidatorSet":
        """The set `times` turns later: rescaled and centred once, then turned."""
        assert times > 0
        return _advanced(self.members, times)

    def changed(self, changes: Sequence[tuple[bytes, int]]) -> "ValidatorSet":
        """The set with these powers; power 0 removes. The turn stays until the next advance.

        A newcomer starts at −(P + P>>3), P = the total after updates, before removals: leaving
        and joining again never gains a turn. Raises `Invalid` `validators.twice`, `.stranger`,
        `.empty`, `.power` or `.too_many`.
        """
        wanted = dict(changes)
        if len(wanted) != len(changes):
            raise Invalid("validators.twice")
        if not changes:
            return self
        old = {member.key: member for member in self.members}
        for key, power in changes:
            if power == 0 and key not in old:
                raise Invalid("validators.stranger", key=key)
        before_removals = {**self.powers(), **{key: power for key, power in changes if power}}
        after = {key: power for key, power in before_removals.items() if wanted.get(key) != 0}
        _check_powers(after)
        total = sum(before_removals.values())
        newcomer = -(total + (total >> 3))
        members = [
            Member(key, power, old[key].priority if key in old else newcomer)
            for key, power in after.items()
        ]
        settled = _centred(_rescaled(members))
        # A turn is chosen by the advance that follows; until then it must name a member.
        turn = self.turn if self.turn in after else _greatest(settled).key
        return ValidatorSet(settled, turn)

    def hash(self) -> bytes:
        """`validators_hash`: RFC 6962 root of leaves `key ‖ power u64`; without priorities."""
        if self._hash is None:
            leaves = [member.key + member.power.to_bytes(8, "big") for member in self.members]
            self._hash = merkle.root(leaves)
        return self._hash


def _rank(member: Member) -> tuple[int, bytes]:
    return -member.power, member.key


def _check_powers(powers: Mapping[bytes, int]) -> None:
    if not powers:
        raise Invalid("validators.empty")
    if len(powers) > VALIDATORS_MAX:
        raise Invalid("validators.too_many", count=len(powers))
    for key, power in powers.items():
        if len(key) != HASH_BYTES or not 0 < power <= POWER_MAX:
            raise Invalid("validators.power", key=key, power=power)
    if sum(powers.values()) > POWER_MAX:
        raise Invalid("validators.power", total=sum(powers.values()))


def _rescaled(members: Sequence[Member]) -> list[Member]:
    """Priorities squeezed into WINDOW_FACTOR totals, so that no one hoards turns."""
    window = WINDOW_FACTOR * sum(member.power for member in members)
    priorities = [member.priority for member in members]
    spread = max(priorities) - min(priorities)
    if spread <= window:
        return list(members)
    ratio = (spread + window - 1) // window
    # Toward zero as in Go; Python's // goes down.
    return [
        member._replace(
            priority=member.priority // ratio
            if member.priority >= 0
            else -(-member.priority // ratio)
        )
        for member in members
    ]


def _centred(members: Sequence[Member]) -> list[Member]:
    average = sum(member.priority for member in members) // len(members)
    return [member._replace(priority=member.priority - average) for member in members]


def _greatest(members: Sequence[Member]) -> Member:
    """The greatest priority; of equals the lower key."""
    return min(members, key=lambda member: (-member.priority, member.key))


def _advanced(members: Sequence[Member], times: int) -> ValidatorSet:
    settled = _centred(_rescaled(members))
    total = sum(member.power for member in settled)
    keys = [member.key for member in settled]
    priorities = [member.priority for member in settled]
    powers = [member.power for member in settled]
    chosen = 0
    for _ in range(times):
        priorities = [priority + power for priority, power in zip(priorities, powers, strict=True)]
        chosen = min(range(len(keys)), key=lambda place: (-priorities[place], keys[place]))
        priorities[chosen] -= total
    turned = [Member(*parts) for parts in zip(keys, powers, priorities, strict=True)]
    return ValidatorSet(turned, keys[chosen])


def encode_priority(priority: int) -> bytes:
    """16 bytes of the priority plus 2^127, as the ledger's state keeps it."""
    return (priority + PRIORITY_OFFSET).to_bytes(WIDE_BYTES, "big")


def decode_priority(raw: bytes) -> int:
    """The priority of 16 bytes."""
    assert len(raw) == WIDE_BYTES
    return int.from_bytes(raw, "big") - PRIORITY_OFFSET


def encode_validators(validators: ValidatorSet) -> bytes:
    """`[[key, power]…]` in the members' order: what `hash` commits to, for a light client."""
    return encode([(member.key, member.power) for member in validators.members])


def decode_validators(raw: bytes) -> ValidatorSet:
    """A set without true priorities or turn: good for quorums and hashes, not for proposers."""
    members = decode(raw, SHAPE, ENCODED_BYTES_MAX, "validators")
    powers = dict(members)
    if len(powers) != len(members):
        raise Invalid("validators.twice")
    _check_powers(powers)
    validators = ValidatorSet([Member(key, power) for key, power in members], members[0][0])
    if tuple((member.key, member.power) for member in validators.members) != members:
        raise Invalid("validators.order")
    return validators
