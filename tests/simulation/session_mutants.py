"""The mutation gate of sessions: one fault at a time in who promises, checks, keeps or settles.

    python tests/simulation/session_mutants.py [NAME…]

Not part of `make test`. Each mutant replaces one piece of source, which must stand there exactly
once; then the sessions of the tests are played, in their order, until one goes wrong. Exit 1 when
none does for some mutant.

Not in the table, since another check stands behind each: `from_seq` and the stored sum of a lane
(the accumulator covers both), the cap (a purse is never overdrawn), a closed channel (it holds
nothing any more).
"""

import argparse
import sys
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # run as a program: the tests' folder is not on the path
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (2, 1)]

from simulation.conftest import RUNS
from simulation.mutants import Mutant, pass_gate, told_by
from simulation.outcomes import OK
from simulation.sessions import session_run

PLAY: Final = "--play"

PROMISES, CHECKS = "node/wallet/promises.py", "node/wallet/checks.py"
CHECKING, SERVICE = "node/serving/checking.py", "node/serving/service.py"
BOOK, BUNDLING = "node/serving/book.py", "node/serving/bundling.py"
CHANNELS, ADMISSION = "node/ledger/rules/channels.py", "node/ledger/admission.py"
BUNDLES = "node/ledger/wire/bundles.py"

# fmt: off
MUTANTS: Final = (
    # the payer's promises
    Mutant("p1", "a voucher is not written down", PROMISES,
           "            self._append(_VOUCHER, encode((raw,)))\n", ""),
    Mutant("p2", "an accepted receipt is not written down", PROMISES,
           "            self._append(_RECEIPT, encode((receipt, signature, credits)))\n", ""),
    Mutant("p3", "a record is written and not synced", PROMISES,
           "        self._log.append(kind, payload)\n        self._log.sync()\n",
           "        self._log.append(kind, payload)\n"),
    Mutant("p4", "a second promise under the same sub", PROMISES,
           "sub = lane.last.sub + 1 if lane.last.seq == seq else 0", "sub = lane.last.sub"),
    Mutant("p5", "holds are not counted as promised", PROMISES,
           "0 if self.last is None else self.last.cumulative + self.last.hold", "self.cumulative"),
    Mutant("p6", "one lane is counted as promised", PROMISES,
           "return sum(lane.promised for lane in lanes if lane.channel == channel)",
           "return max((x.promised for x in lanes if x.channel == channel), default=0)"),
    Mutant("p7", "a lane that was left is used again after a restart", PROMISES,
           "            self._append(_LEFT, encode((lane.channel, lane.number)))\n", ""),
    # the payer's check of a receipt
    Mutant("c1", "any place", CHECKS,
           "(receipt.channel, receipt.lane, receipt.seq) != purchase[7:10]", "False"),
    Mutant("c2", "any order", CHECKS,
           "(receipt.order_hash, receipt.model, receipt.model_version) != ordered", "False"),
    Mutant("c3", "any number of tokens", CHECKS,
           "(receipt.tokens_in, receipt.tokens_out) != (len(purchase.prompt), count)", "False"),
    Mutant("c4", "any fee within the hold", CHECKS,
           "min(hold, price(receipt.tokens_in, receipt.tokens_out, *purchase.prices))", "hold"),
    Mutant("c5", "any fee within the price", CHECKS, "receipt.fee > min(hold, price(",
           "receipt.fee > max(0, price("),
    Mutant("c6", "any answer", CHECKS, "receipt.answer_root != root", "False"),
    Mutant("c7", "any credits", CHECKS,
           "attribution_root(finished.credits) != receipt.attribution_root", "False"),
    Mutant("c8", "any signature", CHECKS,
           "        verify_receipt(purchase.chain_id, finished.receipt, finished.signature, key)\n",
           "        pass\n"),
    # the provider's check of an order
    Mutant("o1", "a voucher that expires soon is good", CHECKING,
           "voucher.expires_ms < max(now_ms + VOUCHER_LEFT_MS, deadline_ms + CLAIM_LEFT_MS)",
           "voucher.expires_ms < now_ms"),
    Mutant("o2", "a voucher may expire before its order's time is over", CHECKING,
           "max(now_ms + VOUCHER_LEFT_MS, deadline_ms + CLAIM_LEFT_MS)",
           "now_ms + VOUCHER_LEFT_MS"),
    Mutant("o3", "lanes do not share the cap", CHECKING,
           "book.promised(voucher.channel, but=lane) + voucher.cumulative",
           "voucher.cumulative"),
    Mutant("o4", "a closing channel is served", CHECKING,
           " or channel.state != tables.CHANNEL_OPEN", ""),
    Mutant("o5", "a second request in a lane that is busy", CHECKING,
           "if lane.is_busy:", "if False:"),
    Mutant("o6", "any sum and accumulator", CHECKING,
           "(voucher.cumulative, voucher.accumulator) == (lane.cumulative, lane.accumulator)",
           "True"),
    Mutant("o7", "a smaller sum", CHECKING,
           "(voucher.cumulative, voucher.accumulator) == (lane.cumulative, lane.accumulator)",
           "voucher.cumulative <= lane.cumulative and voucher.accumulator == lane.accumulator"),
    Mutant("o8", "another accumulator", CHECKING,
           "(voucher.cumulative, voucher.accumulator) == (lane.cumulative, lane.accumulator)",
           "voucher.cumulative == lane.cumulative"),
    Mutant("o9", "any number", CHECKING, "if not (is_here and is_next and", "if not (is_here and"),
    Mutant("o10", "a voucher of another lane or channel", CHECKING,
           "if not (is_here and is_next", "if not (is_next"),
    Mutant("o11", "a hold below the price", CHECKING,
           "if voucher.hold < price(len(prompt), granted, *prices):", "if False:"),
    Mutant("o12", "any signature", CHECKING,
           "        verify_voucher(chain_id, start.voucher, start.signature, channel.spender)\n",
           "        pass\n"),
    Mutant("o13", "a voucher for another order", CHECKING,
           "if voucher.order_hash != order_hash(start.order):", "if False:"),
    # serving
    Mutant("s1", "ticks do not share the cap", SERVICE,
           "and others + voucher.cumulative + voucher.hold <= job.channel.cap", ""),
    Mutant("s2", "a tick below the price of what it asks for", SERVICE,
           "and voucher.hold >= price(len(job.prompt), wanted, *job.prices)", ""),
    Mutant("s3", "a tick for another order", SERVICE,
           "voucher.order_hash == job.order_hash\n", "True\n"),
    Mutant("s4", "a receipt is sent and not kept", SERVICE,
           "        await self._run_blocking(self._book.keep, served)\n", ""),
    Mutant("s5", "a late acknowledgement replaces the hold of what runs", SERVICE,
           "        if lane.is_busy:\n", "        if False:\n"),
    Mutant("s6", "a tick is claimed from the order's first hold", SERVICE,
           "        return paid, wanted\n", "        return job, wanted\n"),
    Mutant("s7", "the fee is not held to the hold", SERVICE,
           "fee = min(-(-list_fee * (BPS - job.model.discount_bps) // BPS), job.voucher.hold)",
           "fee = list_fee + 1"),
    # the book and the bundler
    Mutant("b1", "an answer is written and not synced", BOOK,
           "            place = self._log.append(_SERVED, encode(served))\n"
           "            self._log.sync()\n",
           "            place = self._log.append(_SERVED, encode(served))\n"),
    Mutant("b2", "holds are not counted as promised", BOOK,
           "0 if self.voucher is None else self.voucher.cumulative + self.voucher.hold",
           "self.cumulative"),
    Mutant("b3", "a pruned book forgets what is paid", BOOK,
           "        total = 0 if record is None else record.paid\n", "        total = 0\n"),
    Mutant("b4", "a settled receipt is cut again", BOOK,
           "item.receipt.seq > settled.seq]", "item.receipt.seq >= settled.seq]"),
    Mutant("b5", "a claim under the newest voucher", BOOK,
           "            voucher, signature = lane.claim_raw, lane.claim_sig\n"
           "            last = fresh[-1].signature\n",
           "            last = fresh[-1].signature\n            fresh = fresh[:1]\n"),
    Mutant("b6", "an unacknowledged receipt is never claimed", BOOK,
           "        if may_claim:\n", "        if False:\n"),
    Mutant("b7", "what was lost on its way is not cut again", BUNDLING,
           "late = [open_ for open_ in self._open if now_ms - open_.offered_ms > RECUT_MS]",
           "late = []"),
    Mutant("b8", "a book with a gap does not open", BOOK,
           "is_behind_a_gap = receipt.seq > lane.seq + 1 and _has_ended(state, lane.channel)",
           "is_behind_a_gap = False"),
    # the ledger
    Mutant("l1", "an expired voucher pays", CHANNELS,
           "if voucher.expires_ms <= time_ms:", "if False:"),
    Mutant("l2", "any accumulator", CHANNELS, "if voucher.accumulator != promised:", "if False:"),
    Mutant("l3", "a claim whose accumulator covers itself", CHANNELS,
           "promised = accumulator if checked_section.acknowledged else before_last",
           "promised = accumulator"),
    Mutant("l4", "a bundle's number may come again", CHANNELS,
           "if bundle.header.bundle_seq <= provider.bundle_seq:", "if False:"),
    Mutant("l5", "paid goes above the cap", CHANNELS,
           "take(purses.channel(section.section.channel), section.fees)",
           "state.issue(purses.SETTLING, section.fees)"),
    Mutant("l6", "a payer's close does not wait", CHANNELS,
           "close_at_ms = checked(context.time_ms + state.parameter(\"channel_close_ms\"))",
           "close_at_ms = context.time_ms"),
    Mutant("l7", "an end that one side agrees to", CHANNELS,
           "        (record.provider, payload.provider_signature),\n", ""),
    Mutant("l8", "an end for any sum", CHANNELS,
           "coop_body(channel, record.paid)", "coop_body(channel, 0)"),
    Mutant("l9", "a closing channel is topped up", CHANNELS,
           "    if record.state != tables.CHANNEL_OPEN:\n"
           "        raise Invalid(\"tx.wrong_state\", state=record.state)\n    state.move(",
           "    state.move("),
    Mutant("l10", "the end of a channel returns its whole cap", CHANNELS,
           "rest = record.cap - record.paid", "rest = record.cap"),
    Mutant("a1", "a claim above its hold", BUNDLES, "if receipt.fee > voucher.hold:", "if False:"),
    Mutant("a2", "a claim for another order", BUNDLES,
           "if voucher.order_hash != receipt.order_hash:", "if False:"),
    Mutant("a3", "fees below the minimum", ADMISSION,
           "least = state.parameter(\"min_receipt_fee\")", "least = 0"),
    Mutant("a4", "vouchers are checked with the payer's key", CHANNELS,
           "return None if record is None else record.spender",
           "return None if record is None else record.payer"),
)
# fmt: on


def play() -> str:
    """How the sessions of the tests first go wrong; "" when they never do."""
    for seed in range(RUNS["session"]):
        try:
            outcome = session_run(seed)
        except Exception as error:  # noqa: BLE001  # an assertion of the product notices too
            return f"seed {seed}: {type(error).__name__} {error}"
        if outcome.end != OK:
            return f"seed {seed}: {outcome.end} {outcome.why}"
    return ""


def main() -> int:
    """Try all mutants, or those named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="p1, c1, o1, s1, b1, l1, a1 …")
    parser.add_argument(PLAY, action="store_true", help="this tree's sessions, once")
    given = parser.parse_args()
    if given.play:
        print(play())  # noqa: T201
        return 0
    chosen = [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]
    return pass_gate(chosen, lambda folder: told_by(folder, Path(__file__), PLAY))


if __name__ == "__main__":
    sys.exit(main())
