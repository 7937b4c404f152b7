"""`olnode bench settle`: a bundle's check beside two signatures a receipt, then four daemons.

The whole check that a block's execution needs: sizes, shapes, canonical bytes, signatures, sums and
roots (A1 to A7 of page 30 §8), then channels, lanes, prices and credits against the state (B1 to
B4), with the money moved. One bundle of 4,000 receipts, ten a section, a channel for each section,
four credits a receipt. The naive way beside it verifies the payer's and the provider's
signature of each receipt, and does nothing else. CPU time, in one process by turns: medians of the
rounds, and of each round's ratio, since a busy neighbour slows both halves of a round alike.
The daemons, and what they leave on the disk: `settling.py`.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import trio
from bench import settling
from bench.protocol import AT_LEAST, AT_MOST, Budget, finish, quiet
from bundle_kit import LaneSession
from ledger_kit import (
    CHAIN,
    OPEN,
    PAYER,
    PROVIDER,
    context,
    fee_of,
    new_state,
    open_channel,
    session,
)

from consensus.primitives.keys import is_signed_by
from node.collecting import collect_seldom
from node.ledger.admission import admit_bundle
from node.ledger.rules.channels import apply_bundle
from node.ledger.state import State
from node.ledger.wire.bundles import Bundle, build_bundle
from node.ledger.wire.orders import voucher_message
from node.ledger.wire.receipts import receipt_message

SECTIONS: Final = 400
PER_SECTION: Final = 10
CREDITS: Final = ((1, 4_000), (2, 3_000), (3, 2_000), (4, 1_000))
TOKENS: Final = (812, 143)  # in, out
ROUNDS: Final = 100
NAIVE: Final = 400  # receipts of a naive round
SECONDS: Final = 60.0
PER_SECOND_MAX: Final = 8_000  # more than they reach
BUDGETS: Final = (
    Budget("check_receipts_per_cpu_s", AT_LEAST, 100_000),
    Budget("ratio", AT_LEAST, 8),
    Budget("settled_per_s_4_validators", AT_LEAST, 2_000),
    Budget("lost", AT_MOST, 0),
    Budget("bytes_per_receipt_disk", AT_MOST, 150),
    Budget("bytes_per_receipt_window", AT_MOST, 350),
)


class Undone(Exception):
    """Ends a trial whose changes are not wanted."""


class Made(NamedTuple):
    """A bundle and the state that it settles on."""

    state: State
    bundle: Bundle
    receipts: int


def make(sections: int = SECTIONS) -> Made:
    """A bundle of so many channels, ten receipts each."""
    state, chance, parts = new_state(), random.Random(1), []
    for number in range(sections):
        lane = session(open_channel(state, cap=OPEN, nonce=number), chance)
        for _ in range(PER_SECTION):
            tokens_in, tokens_out = TOKENS
            fee = fee_of(tokens_in, tokens_out)
            lane.serve(CREDITS, tokens_in=tokens_in, tokens_out=tokens_out, fee=fee)
        parts.append(lane.cut())
    bundle = build_bundle(
        chain_id=CHAIN, provider=PROVIDER.key, bundle_seq=1, parts=parts, sign=PROVIDER.sign
    )
    return Made(state, bundle, sections * PER_SECTION)


def measure(
    *, sections: int = SECTIONS, rounds: int = ROUNDS, naive: int = NAIVE
) -> dict[str, object]:
    """The figures of one core."""
    collect_seldom()  # as a node does
    made, pair = make(sections), _signed_pair()
    admitting, applying, verifying = [], [], []
    for _ in range(rounds):
        admit_s, apply_s = _check_cpu_s(made)
        admitting.append(admit_s / made.receipts)
        applying.append(apply_s / made.receipts)
        verifying.append(_naive_cpu_s(pair, naive) / naive)
    both = [one + other for one, other in zip(admitting, applying, strict=True)]
    ratios = [two / check for two, check in zip(verifying, both, strict=True)]
    return {
        "check_receipts_per_cpu_s": round(1 / statistics.median(both)),
        "two_signatures_per_cpu_s": round(1 / statistics.median(verifying)),
        "ratio": round(statistics.median(ratios), 2),
        "receipts_per_section": PER_SECTION,
        "admit_receipts_per_cpu_s": round(1 / statistics.median(admitting)),
        "apply_receipts_per_cpu_s": round(1 / statistics.median(applying)),
    }


def _check_cpu_s(made: Made) -> tuple[float, float]:
    """A1 to A7, then B1 to B4, on a state that is left as it was."""
    began_s = time.process_time()
    admitted = admit_bundle(made.state, CHAIN, made.bundle)
    admitted_s = time.process_time()
    try:
        with made.state.trial():
            apply_bundle(made.state, context(), admitted.bundle)
            applied_s = time.process_time()
            raise Undone
    except Undone:
        return admitted_s - began_s, applied_s - admitted_s


Pair = tuple[
    tuple[bytes, bytes, bytes], ...
]  # key, message, signature: the payer's, the provider's


def _signed_pair() -> Pair:
    lane = LaneSession(bytes(32), 0, PAYER, PROVIDER, random.Random(1), CHAIN)
    raw = lane.serve(CREDITS)
    message = receipt_message(CHAIN, raw)
    voucher, signature = lane.voucher()
    return (
        (PAYER.key, voucher_message(CHAIN, voucher), signature),
        (PROVIDER.key, message, PROVIDER.sign(message)),
    )


def _naive_cpu_s(pair: Pair, receipts: int) -> float:
    began_s = time.process_time()
    for _ in range(receipts):
        for key, message, signature in pair:
            assert is_signed_by(key, message, signature)
    return time.process_time() - began_s


def main() -> None:
    """The command line of `olnode bench settle`."""
    parser = argparse.ArgumentParser(prog="olnode bench settle")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of one core's figures")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load on four daemons")
    parser.add_argument("--per-second-max", type=int, default=PER_SECOND_MAX, help="receipts made")
    given = parser.parse_args()
    quiet()
    figures = measure(rounds=given.rounds)
    with tempfile.TemporaryDirectory(prefix="olnode-bench-") as folder:
        run = settling.run
        figures |= trio.run(run, Path(folder), given.seconds, given.per_second_max)
    finish(figures, BUDGETS)


if __name__ == "__main__":
    main()
