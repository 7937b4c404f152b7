"""A sketch made again: alike, a little off, another, or none, over a settled answer of a chain."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from attribution_kit import mix_rows
from exchange_kit import at_once
from fraud_kit import ROWS, Court
from ledger_kit import NOW_MS
from stored_kit import Stored

from consensus.primitives.digest import sha256
from consensus.primitives.errors import Invalid
from node.attribution.attribute import attribute, credits_of
from node.attribution.audit import Claim
from node.ledger.rules.shares import SCALE, threshold
from node.ledger.wire.bundles import decode_body
from node.ledger.wire.claims import decode_statement, encode_statement, sketch_hash
from node.ledger.wire.orders import (
    PRIVATE,
    ZERO_HASH,
    Order,
    encode_order,
    order_hash,
    prompt_commit,
)
from node.ledger.wire.receipts import COMPLETE, PARTIAL, answer_root, receipt_id
from node.serving.attributing import UNATTRIBUTED, Attributed
from node.serving.engine import EngineError, EngineLost, Overloaded
from node.sketchaudit import SketchAuditor
from node.storage.store import MemoryKV
from node.wallet.disclosure import Disclosure
from node.web import answers

PROMPT, ANSWERS, SALT = (5, 6, 7), ((8, 9),), b"\1" * 16
NO_CLAIM = Claim(bytes(32), (), b"", b"")


class Scene:
    """A settled answer whose texts are known, and a node that holds its version."""

    def __init__(
        self,
        folder: Path,
        *,
        claims: bool = True,
        flags: int = 0,
        leaning: float | None = None,  # towards row 9 alone
        credits: Any = None,  # others than follow
        **fields: Any,
    ) -> None:
        court = Court(folder / "index", Stored(folder / "chain", MemoryKV()))
        self.court = court
        self.claim = court.claim() if claims else NO_CLAIM
        if leaning is not None:
            made = self.made(self.leaning(leaning))
            self.claim = Claim(made.sketch_hash, made.credits, made.sketch, made.statement)
        if credits is not None:
            self.claim = self.claim._replace(credits=credits)
        order = encode_order(
            Order(
                version=1, model=1, model_version=1, max_in=3, max_out=8,
                prompt_commit=prompt_commit(SALT, PROMPT), sampling_hash=sha256(b"sampling"),
                seed_commit=ZERO_HASH, quantum=256, deadline_ms=NOW_MS, flags=flags, salt16=SALT,
            )
        )  # fmt: skip
        self.told = Disclosure(
            order, b"", ZERO_HASH, PROMPT, ANSWERS, self.claim.sketch, self.claim.statement
        )
        root = answer_root(SALT, b"", ZERO_HASH, ANSWERS)
        court.answer(self.claim, order_hash=order_hash(order), answer_root=root, **fields)
        bundle = court.settle()
        self.receipt = receipt_id(decode_body(bundle.body)[0].receipts[0])
        self.own = self.made(self.claim.sketch) if claims else UNATTRIBUTED
        self.dtype = 0
        self.holds = True
        self.asked: list[Any] = []

    def made(self, sketch: bytes) -> Attributed:
        """What an engine that makes this sketch states."""
        found = attribute(self.court.index, sketch, self.court.version)
        return Attributed(found.credits, sketch, found.statement_bytes, found.sketch_hash)

    def leaning(self, weight: float) -> bytes:
        return mix_rows([(weight, self.court.index.rows[9])])

    async def attribute(self, *asked: Any) -> Attributed:
        self.asked.append(asked)
        return self.own

    def find_held(self, model: int, version: int) -> Any:
        manifest = SimpleNamespace(gradient_dtype=self.dtype)
        index = SimpleNamespace(index=self.court.index) if self.holds else None
        return SimpleNamespace(name="facts-1", version=version, manifest=manifest, index=index)

    async def audit(self, told: Disclosure | None = None) -> answers.SketchAudit | None:
        auditor = SketchAuditor(
            take_view=self.court.chain.chain.view, attribute=self.attribute,
            find_held=self.find_held, run_blocking=at_once,
        )  # fmt: skip
        return await auditor.audit(self.receipt, told or self.told)


def off(sketch: bytes, share: float) -> bytes:
    """The sketch with so much of something else in it, each half as long as it was."""
    halves = np.frombuffer(sketch, np.int8).astype(np.float64).reshape(2, 512)
    lengths = np.linalg.norm(halves, axis=1, keepdims=True)
    noise = np.random.default_rng(1).normal(size=halves.shape) * lengths / 512**0.5
    mixed = halves + share * noise
    mixed *= lengths / np.linalg.norm(mixed, axis=1, keepdims=True)
    return np.clip(np.rint(mixed), -127, 127).astype(np.int8).tobytes()


async def test_same_sketch_passes_with_every_figure(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert await scene.audit() == answers.SketchAudit(
        scene.receipt, "facts-1", 1, "pass", "", 10**6, 10**6, 0, 0, "fp32", 995_000, 50, 1_500
    )
    assert scene.asked == [(1, 1, PROMPT, ANSWERS, 8)]


@pytest.mark.parametrize(
    ("share", "dtype", "verdict"),
    [
        (0.05, 0, "pass"),
        (0.15, 0, "suspect"),
        (0.15, 1, "pass"),
        (0.8, 0, "fail"),
        (0.8, 1, "fail"),
    ],
)
async def test_verdict_follows_the_cosine_and_the_dtype(
    tmp_path: Path, share: float, dtype: int, verdict: str
) -> None:
    scene = Scene(tmp_path)
    scene.own, scene.dtype = scene.made(off(scene.claim.sketch, share)), dtype
    told = await scene.audit()
    assert told is not None
    assert (told.verdict, told.gradient_dtype) == (verdict, ("fp32", "bf16")[dtype])
    assert told.why == ("" if verdict == "pass" else "sketch")


async def test_shares_that_move_fail_it_though_the_sketch_is_alike(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    found = decode_statement(scene.own.statement)
    raw = encode_statement(found._replace(paid=found.paid[:1]))
    scene.own = scene.own._replace(statement=raw)
    told = await scene.audit()
    assert told is not None
    assert told.verdict == "fail"
    assert told.moved_bps > 1_500


@pytest.mark.parametrize(
    ("parts", "dtype", "verdict"),
    [(13, 0, "pass"), (12, 0, "suspect"), (12, 1, "pass"), (9, 1, "suspect")],
)
async def test_how_much_is_paid_may_swing_a_little(
    tmp_path: Path, parts: int, dtype: int, verdict: str
) -> None:
    """Part of it here, all of it there: an honest machine near the threshold, or a friend's row
    raised within the cosines."""
    scene = Scene(tmp_path)
    found = decode_statement(scene.own.statement)
    tau = threshold(found.floors, ROWS) // SCALE
    nearer = tuple(
        (row, owner, tau + (score - tau) * parts // 27) for row, owner, score in found.paid
    )
    lower = found._replace(paid=nearer)
    whole, part = (credits_of(scene.court.index, stated) for stated in (found, lower))
    assert not dict(whole).get(0)
    assert 0 < dict(part)[0] < 10_000
    scene.own = scene.own._replace(statement=encode_statement(lower), credits=part)
    scene.dtype = dtype
    told = await scene.audit()
    assert told is not None
    assert (told.verdict, told.moved_bps < 50) == (verdict, True)
    assert abs(told.swing_bps - dict(part)[0]) <= 1


async def test_who_would_share_what_is_not_paid_is_not_compared(tmp_path: Path) -> None:
    """One row stands just above the threshold here and just below it there: nobody is paid."""
    scene = Scene(tmp_path, leaning=0.14)
    scene.own = scene.made(scene.leaning(0.12))
    here, there = (decode_statement(each.statement) for each in (scene.own, scene.claim))
    assert (len(here.paid), len(there.paid), scene.claim.credits) == (0, 1, ())
    told = await scene.audit()
    assert told is not None
    assert (told.verdict, told.moved_bps) == ("pass", 0)


async def test_credits_that_the_statement_does_not_pay_fail_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, credits=((1, 10_000),))
    told = await scene.audit()
    assert told is not None
    assert (told.verdict, told.why, told.moved_bps) == ("fail", "credits", 10_000)


async def test_statement_that_is_none_fails_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, sketch_hash=sketch_hash(bytes(1_024), b"none"))
    told = await scene.audit(scene.told._replace(sketch=bytes(1_024), statement=b"none"))
    assert told is not None
    assert (told.verdict, told.why) == ("fail", "sketch")


async def test_texts_of_another_answer_are_refused_before_any_work(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for change in ({"prompt": (5, 6)}, {"answers": ((8,),)}, {"sketch": bytes(1_024)}):
        with pytest.raises(Invalid, match=r"disclosure\."):
            await scene.audit(scene.told._replace(**change))
    assert scene.asked == []


@pytest.mark.parametrize(("status", "verdict"), [(COMPLETE, "fail"), (PARTIAL, "suspect")])
async def test_receipt_without_a_sketch_is_a_finding_where_one_can_be_made(
    tmp_path: Path, status: int, verdict: str
) -> None:
    scene = Scene(tmp_path, claims=False, status=status)
    scene.own = UNATTRIBUTED
    told = await scene.audit()
    assert told is not None
    assert (told.verdict, told.why) == ("pass", "")
    scene.own = scene.made(scene.court.sketch())
    told = await scene.audit()
    assert told is not None
    assert (told.verdict, told.why, told.moved_bps) == (verdict, "no_sketch", 10_000)


@pytest.mark.parametrize("error", [EngineLost, Overloaded])
async def test_engine_that_fails_now_says_nothing_of_a_receipt_without_a_sketch(
    tmp_path: Path, error: type[EngineError]
) -> None:
    """It would be the proof that none can be made, for a provider that made none."""
    scene = Scene(tmp_path, claims=False)
    scene.own = UNATTRIBUTED._replace(why=error.code)
    with pytest.raises(Invalid, match=r"audit\.not_ready"):
        await scene.audit()


async def test_what_a_receipt_binds_and_is_no_sketch_fails(tmp_path: Path) -> None:
    """A provider may sign the hash of anything; the payer shows what it was given."""
    scene = Scene(tmp_path, sketch_hash=sketch_hash(b"odd", b""))
    told = await scene.audit(scene.told._replace(sketch=b"odd", statement=b""))
    assert told is not None
    assert (told.verdict, told.why, told.early_ppm) == ("fail", "sketch", 0)


async def test_what_cannot_be_looked_at_says_why(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.own = UNATTRIBUTED
    with pytest.raises(Invalid, match=r"audit\.not_ready"):
        await scene.audit()
    scene.holds = False
    with pytest.raises(Invalid, match=r"audit\.no_index"):
        await scene.audit()
    scene.receipt = bytes(32)
    assert await scene.audit() is None, "it is not settled"


async def test_private_order_has_no_sketch_to_look_at(tmp_path: Path) -> None:
    scene = Scene(tmp_path, claims=False, flags=PRIVATE)
    with pytest.raises(Invalid, match=r"audit\.private"):
        await scene.audit()
    assert scene.asked == []


async def test_node_without_an_engine_names_who_has_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    auditor = SketchAuditor(
        take_view=scene.court.chain.chain.view, attribute=None, find_held=scene.find_held
    )
    with pytest.raises(Invalid, match=r"audit\.no_engine"):
        await auditor.audit(scene.receipt, scene.told)
