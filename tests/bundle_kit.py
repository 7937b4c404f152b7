"""Receipts, vouchers and bundles as honest parties make them, for tests of many parts."""

import random
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from consensus.primitives.digest import sha256
from consensus.primitives.keys import public_key, sign
from node.ledger.wire.bundles import (
    BodyPart,
    Bundle,
    BundleHeader,
    Section,
    build_bundle,
    encode_header,
    encode_section,
)
from node.ledger.wire.orders import ZERO_HASH, Voucher, encode_voucher, voucher_message
from node.ledger.wire.receipts import (
    Receipt,
    accumulate_receipt,
    accumulator_start,
    attribution_root,
    encode_credits,
    encode_receipt,
    receipt_message,
)

CHAIN = sha256(b"bundle kit")
EXPIRES_MS = 4_000_000_000_000


_key_of = cache(public_key)  # a derivation costs as much as a signature


class Party(NamedTuple):
    """A key pair that signs."""

    seed: bytes

    @property
    def key(self) -> bytes:
        return _key_of(self.seed)

    def sign(self, message: bytes) -> bytes:
        return sign(self.seed, message)


def party(name: str) -> Party:
    return Party(sha256(name.encode()))


def some_credits(rng: random.Random, count: int) -> tuple[tuple[int, int], ...]:
    """`count` credits that sum to 10,000; none for 0."""
    if not count:
        return ()
    cuts = [0, *sorted(rng.sample(range(1, 10_000), count - 1)), 10_000]
    numbers = sorted(rng.sample(range(1, 50_000), count))
    return tuple((n, b - a) for n, a, b in zip(numbers, cuts, cuts[1:], strict=False))


def some_receipt(rng: random.Random, credits_raw: bytes, **fields: object) -> Receipt:
    """A well-formed receipt; `fields` win over chance."""
    made = {
        "version": 1,
        "channel": rng.randbytes(32),
        "lane": 0,
        "seq": 1,
        "order_hash": rng.randbytes(32),
        "model": 1,
        "model_version": 1,
        "tokens_in": rng.randrange(1, 1_000),
        "tokens_out": rng.randrange(1, 1_000),
        "fee": rng.randrange(1_000_000, 30_000_000),
        "answer_root": rng.randbytes(32),
        "attribution_root": attribution_root(credits_raw),
        "sketch_hash": rng.randbytes(32),
        "fingerprint_hash": rng.randbytes(32),
        "started_ms": 1_700_000_000_000,
        "finished_ms": 1_700_000_001_000,
        "status": 0,
    }
    return Receipt(**(made | fields))  # type: ignore[arg-type]


class LaneSession:
    """One lane as an honest pair runs it: receipts grow, `cut` takes those not yet settled."""

    def __init__(
        self, channel: bytes, lane: int, payer: Party, provider: Party, rng: random.Random,
        chain_id: bytes = CHAIN,
    ) -> None:  # fmt: skip
        self.channel, self.lane, self.payer, self.provider = channel, lane, payer, provider
        self.rng, self.chain_id = rng, chain_id
        self.seq = 0
        self.cumulative = 0
        self.accumulator = accumulator_start(channel, lane)
        self.receipts: list[bytes] = []
        self.credits: list[bytes] = []
        self.fees: list[int] = []

    def serve(self, credits: tuple[tuple[int, int], ...] = (), **fields: object) -> bytes:
        credits_raw = encode_credits(credits)
        self.seq += 1
        receipt = some_receipt(
            self.rng, credits_raw, **({"channel": self.channel, "lane": self.lane, "seq": self.seq}
                                      | fields)
        )  # fmt: skip
        raw = encode_receipt(receipt)
        self.receipts.append(raw)
        self.credits.append(credits_raw)
        self.fees.append(receipt.fee)
        self.cumulative += receipt.fee
        self.last_accumulator = self.accumulator
        self.accumulator = accumulate_receipt(self.accumulator, raw)
        self.order_hash = receipt.order_hash
        return raw

    def voucher(self, **fields: object) -> tuple[bytes, bytes]:
        """The payer's signed voucher that acknowledges everything, unless `fields` say else."""
        made = {
            "version": 1,
            "channel": self.channel,
            "lane": self.lane,
            "seq": self.seq + 1,
            "sub": 0,
            "cumulative": self.cumulative,
            "accumulator": self.accumulator,
            "hold": 0,
            "order_hash": ZERO_HASH,
            "expires_ms": EXPIRES_MS,
        }
        raw = encode_voucher(Voucher(**(made | fields)))  # type: ignore[arg-type]
        return raw, self.payer.sign(voucher_message(self.chain_id, raw))

    def cut(self, from_hold: bool = False) -> BodyPart:
        """The unsettled receipts as a section; `from_hold` leaves the last unacknowledged."""
        fees = sum(self.fees)
        if from_hold:
            voucher, signature = self.voucher(
                seq=self.seq,
                cumulative=self.cumulative - self.fees[-1],
                accumulator=self.last_accumulator,
                hold=self.fees[-1],
                order_hash=self.order_hash,
            )
            last = self.provider.sign(receipt_message(self.chain_id, self.receipts[-1]))
        else:
            (voucher, signature), last = self.voucher(), b""
        section = Section(
            channel=self.channel,
            lane=self.lane,
            from_seq=self.seq - len(self.receipts) + 1,
            to_seq=self.seq,
            amount=fees,
            voucher=voucher,
            voucher_sig=signature,
            last_receipt_sig=last,
        )
        part = BodyPart(encode_section(section), tuple(self.receipts), tuple(self.credits))
        self.receipts, self.credits, self.fees = [], [], []
        return part


class Made(NamedTuple):
    """A bundle with the keys that its checker asks for."""

    bundle: Bundle
    provider: Party
    spenders: dict[bytes, bytes]

    @property
    def keys(self) -> dict[str, Callable[[bytes], bytes | None]]:
        providers = {self.provider.key: self.provider.key}
        return {"provider_key": providers.get, "spender_key": self.spenders.get}


def some_bundle(
    seed: int, sections: int = 3, receipts: int = 4, from_hold: bool = False, credits: int = 3
) -> Made:
    """A bundle of `sections` channels × `receipts`, each with its own payer."""
    rng = random.Random(seed)
    provider = party("provider")
    parts, spenders = [], {}
    for number in range(sections):
        payer = party(f"payer {number}")
        session = LaneSession(rng.randbytes(32), 0, payer, provider, rng)
        spenders[session.channel] = payer.key
        for _ in range(receipts):
            session.serve(some_credits(rng, credits), model=1 + rng.randrange(3))
        parts.append(session.cut(from_hold))
    bundle = build_bundle(
        chain_id=CHAIN, provider=provider.key, bundle_seq=1, parts=parts, sign=provider.sign
    )
    return Made(bundle, provider, spenders)


def bundle_around(body: bytes, sequence: int = 1) -> Bundle:
    """A bundle whose body nobody looks into: only its header and its hash are right."""
    key = party("provider").key
    header = BundleHeader(
        1, key, sequence, bytes(32), 1, 1, ((1, 1, 1),), bytes(32), len(body), sha256(body)
    )
    return Bundle(encode_header(header), bytes(64), body)
