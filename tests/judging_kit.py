"""A provider that serves from a `SlotCore` and tells of it, honestly or not, and its auditor."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from node.ledger.wire.orders import (
    PAYER_SEEDED,
    VERSION,
    ZERO_HASH,
    Order,
    OrderSampling,
    encode_order,
    encode_sampling,
    order_hash,
    pack_ids,
    prompt_commit,
    seed_commit,
)
from node.ledger.wire.receipts import COMPLETE, PARTIAL, Receipt, answer_root
from node.serving import verify
from node.serving.engine import Finish, GenRequest, Sampling, Score, ScoreItem, Token
from node.serving.judging import (
    Bounds,
    Judgement,
    Served,
    Vocabulary,
    bounds_of,
    items_of,
    judge,
    read_claims,
)
from node.serving.manifest import DTYPES, Manifest
from node.serving.sampling import joint_seed

PAYER_NONCE = bytes([7]) * 32
PROVIDER_NONCE = bytes([9]) * 32
SALT = bytes(16)


def manifest_of(base: bytes, adapter: bytes, *, dtype: str = "fp32", rank: int = 8) -> Manifest:
    """Of a version without an index."""
    return Manifest(
        version=1,
        base=base,
        adapter=adapter,
        early=b"",
        middle=b"",
        rank=rank if adapter else 0,
        targets=(b"q_proj",) if adapter else (),
        snapshot=b"",
        index_root=b"",
        probe=b"",
        dtype_class=DTYPES.index(dtype),
        gradient_dtype=0,
        max_model_len=256,
        thresholds=(),
        report=b"",
    )


@dataclass(frozen=True)
class Told:
    """What an auditor is given of one answer."""

    receipt: Receipt
    evidence: bytes

    def changed(self, **fields: Any) -> "Told":
        """The same with other fields of its evidence, and the receipt hashed over that."""
        evidence = verify.decode_evidence(self.evidence)._replace(**fields)
        raw = verify.encode_evidence(evidence)
        return Told(self.receipt._replace(fingerprint_hash=verify.fingerprint_hash(raw)), raw)


@dataclass(frozen=True)
class Asked:
    """One question: `tokens` are the prompt's ids."""

    tokens: tuple[int, ...]
    sampling: OrderSampling
    provider_nonce: bytes = PROVIDER_NONCE
    payer_nonce: bytes = PAYER_NONCE
    flags: int = 0

    @property
    def order(self) -> Order:
        """As the payer signs it."""
        is_hot = self.sampling.temperature_milli > 0
        return Order(
            version=VERSION,
            model=1,
            model_version=1,
            max_in=len(self.tokens),
            max_out=self.sampling.n * self.sampling.max_tokens,
            prompt_commit=prompt_commit(SALT, self.tokens),
            sampling_hash=verify.fingerprint_hash(encode_sampling(self.sampling)),
            seed_commit=seed_commit(self.payer_nonce) if is_hot else ZERO_HASH,
            quantum=64,
            deadline_ms=0,
            flags=self.flags,
            salt16=SALT,
        )

    def request(self, number: int, adapter: bytes | None, **changed: Any) -> GenRequest:
        """What the provider's engine is given; `changed`: how a cheat samples."""
        s = self.sampling
        wanted = Sampling(
            s.max_tokens, s.temperature_milli, s.top_p_milli, s.top_k, s.n, s.stop, flags=s.flags
        )
        hashed = order_hash(encode_order(self.order))
        seed = joint_seed(hashed, self.payer_nonce, self.provider_nonce)
        return GenRequest(
            number.to_bytes(4, "big"), b"t", adapter, self.tokens, replace(wanted, **changed), seed
        )

    def told(
        self, info: Any, adapter: bytes | None, tokens: Sequence[Token], finish: Finish
    ) -> Told:
        """Receipt and evidence of what was generated."""
        choices, answers = [], []
        for place, ending in enumerate(finish.choices):
            ids = [token.id for token in tokens if token.choice == place]
            answers.append(ids)
            choices.append(
                verify.choice_evidence(ids, ending.logprobs, ending.fingerprints, ending.reason)
            )
        order = encode_order(self.order)
        evidence = verify.encode_evidence(
            verify.Evidence(
                version=verify.VERSION,
                base=info.base,
                adapter=adapter or b"",
                dtype_class=info.dtype_class.encode(),
                build=info.build,
                order=order,
                payer_nonce=self.payer_nonce,
                provider_nonce=self.provider_nonce,
                sampling=encode_sampling(self.sampling),
                prompt=pack_ids(self.tokens),
                choices=tuple(choices),
            )
        )
        is_whole = all(reason in ("stop", "length") for reason in finish.reasons)
        receipt = Receipt(
            version=VERSION,
            channel=bytes(32),
            lane=0,
            seq=1,
            order_hash=order_hash(order),
            model=1,
            model_version=1,
            tokens_in=len(self.tokens),
            tokens_out=sum(map(len, answers)),
            fee=1,
            answer_root=answer_root(SALT, self.payer_nonce, self.provider_nonce, answers),
            attribution_root=ZERO_HASH,
            sketch_hash=ZERO_HASH,
            fingerprint_hash=verify.fingerprint_hash(evidence),
            started_ms=1,
            finished_ms=2,
            status=COMPLETE if is_whole else PARTIAL,
        )
        return Told(receipt, evidence)


def questions(count: int, *, seed: int = 1, length: int = 24, **sampling: Any) -> list[Asked]:
    """Random prompts over bytes."""
    chance = random.Random(seed)
    fields = {"temperature_milli": 1_000, "max_tokens": 48, "flags": 1, **sampling}
    asked = []
    for number in range(count):
        tokens = tuple(chance.randrange(256) for _ in range(length))
        nonce = number.to_bytes(32, "big")
        asked.append(Asked(tokens, sampling_of(**fields), provider_nonce=nonce))
    return asked


def sampling_of(**fields: Any) -> OrderSampling:
    """Greedy and short, but for `fields`."""
    plain = OrderSampling(VERSION, 0, 1_000, 0, 16, 1, (), 0)
    return plain._replace(**fields)


def serve(
    core: Any, asked: Sequence[Asked], adapter: bytes | None, *, claimed: Any = None, **changed: Any
) -> list[Told]:
    """All of `asked` in one batch; `claimed`: (info, adapter) that the provider tells of."""
    info, said = claimed or (core.info, adapter)
    for number, question in enumerate(asked):
        core.submit(question.request(number, adapter, **changed))
    tokens: dict[bytes, list[Token]] = {}
    told: dict[bytes, Told] = {}
    while len(told) < len(asked):
        for id, event in core.step():
            if isinstance(event, Token):
                tokens.setdefault(id, []).append(event)
            else:
                question = asked[int.from_bytes(id, "big")]
                told[id] = question.told(info, said, tokens.get(id, []), event)
    return [told[id] for id in sorted(told)]


class Auditor:
    """Runs answers again with an engine of its own."""

    def __init__(self, core: Any, manifest: Manifest) -> None:
        self.core = core
        self.manifest = manifest
        self.vocabulary = Vocabulary(core._pieces, core._eos)
        self.bounds: Bounds = bounds_of(manifest)

    def scores(self, served: Served) -> list[Score]:
        """As `Engine.score`, without the processes."""
        return self.run(items_of(served, self.bounds))

    def run(self, items: Sequence[ScoreItem]) -> list[Score]:
        """Each answer again, in order."""
        self.core.add_scores(1, list(items))
        made: list[Any] = []
        while len(made) < len(items):
            self.core.step()
            made += self.core.made()
        return [score for _, _, score in sorted(made, key=lambda one: one[1])]

    def judge(self, told: Told) -> Judgement:
        """Raises Invalid for what is not even claimed rightly."""
        served = read_claims(told.receipt, told.evidence, self.manifest, self.vocabulary)
        return judge(served, self.scores(served), self.bounds)


__all__ = ["PAYER_SEEDED", "Asked", "Auditor", "Told", "manifest_of", "questions", "serve"]
