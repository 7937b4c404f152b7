"""The numbers of agreement: those the ledger may change, and the caps that nothing may pass.

Why two kinds: a parameter lives in the state and governance moves it within its cap; a cap bounds
memory and time on every node, so raising one is a new version of the software.
"""

from dataclasses import dataclass
from typing import Final

KIB: Final = 1 << 10
DAY_MS: Final = 86_400_000

# --- hard caps on sizes
HEADER_BYTES_MAX: Final = 1 * KIB
CERTIFICATE_BYTES_MAX: Final = 8 * KIB
PROPOSAL_BYTES_MAX: Final = 16 * KIB
STATUS_BYTES_MAX: Final = 4 * KIB
EVIDENCE_BYTES_MAX: Final = 64 * KIB
EVIDENCE_PIECES_MAX: Final = 8  # in one payload
PAYLOAD_BYTES_MAX: Final = 1024 * KIB
BLOCK_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + 64 * KIB

# --- hard caps on the set
VALIDATORS_MAX: Final = 100
POWER_MAX: Final = 2**60  # of the whole set: priorities then stay far below 2^127

# --- what the engine keeps of one height (page 20 §4)
ROUND_MAX: Final = 2**31 - 1
ROUNDS_AHEAD_MAX: Final = 2  # above the current round by more: one message per member
OLD_ROUNDS_MAX: Final = 64  # behind the current round
OLD_ROUNDS_WITH_QUORUM_MAX: Final = 64  # more, if they hold a polka or a precommit for a block


@dataclass(frozen=True, slots=True)
class ConsensusParams:
    """What the ledger says about agreement; milliseconds and bytes."""

    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    validators_max: int = 48  # one direct stream to each (page 20 §7)
    precision_ms: int = 500
    delay_ms: int = 5_000
    heartbeat_ms: int = 30_000
    unbonding_ms: int = 21 * DAY_MS

    def __post_init__(self) -> None:
        assert 0 < self.payload_bytes_max <= PAYLOAD_BYTES_MAX
        assert 0 < self.validators_max <= VALIDATORS_MAX
        assert self.precision_ms > 0
        assert self.delay_ms > 0
        assert self.heartbeat_ms > 0
        assert self.unbonding_ms > 0


# The greatest certificate and proposal must fit their frames, or a full set could not agree.
_SIGNATURES_BYTES = 64 * VALIDATORS_MAX
assert _SIGNATURES_BYTES + 256 <= CERTIFICATE_BYTES_MAX
assert CERTIFICATE_BYTES_MAX + HEADER_BYTES_MAX + 256 <= PROPOSAL_BYTES_MAX
