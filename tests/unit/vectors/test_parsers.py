"""Whatever the bytes, a parser says `Invalid` and nothing else; what it takes is its own encoding.

Every `decode_` of the pure floors is here: a new one fails the first test until it is.
"""

import importlib
import json
import pkgutil
import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
from vectors.agreement import PEOPLE, TRUST, agreement_examples
from vectors.example import Example
from vectors.hostile import hostile
from vectors.make import HERE
from vectors.market import market_examples
from vectors.small_chain import Story

import consensus
import node.ledger
from consensus import (
    attacks,
    certificate,
    evidence,
    header,
    messages,
    pastblocks,
    skipping,
    validators,
)
from consensus.primitives.errors import Invalid
from node import light
from node.ledger import accusations, execute, genesis, proofs, tables
from node.ledger.tables import Table
from node.ledger.wire import (
    blocks,
    bundles,
    claims,
    exchange,
    orders,
    payouts,
    receipts,
    transactions,
)

INPUTS = 20_000  # of each parser (page 30 §12)
RECORD_INPUTS = 4_000
FILE_INPUTS = 4_000
WORD = re.compile(r"[a-z_]+\.[a-z_]+")
EXAMPLES: dict[str, Example] = market_examples() | agreement_examples()
GENESIS = bytes.fromhex(json.loads((HERE / "chain.json").read_text(encoding="utf-8"))["genesis"])


class Parser(NamedTuple):
    """A decoder, the encoder that must give its bytes back, and names of good examples."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    goods: tuple[str, ...]


def names(prefix: str) -> tuple[str, ...]:
    return tuple(name for name in EXAMPLES if name.startswith(prefix))


def decode_file(raw: bytes) -> tuple[bool, tuple[proofs.ProofFile, ...]]:
    """With whether it is a dossier: one of one proof is another file than the proof alone."""
    return raw[:2] != b"\x99\x01", proofs.decode_proofs(raw)


def encode_file(file: tuple[bool, tuple[proofs.ProofFile, ...]]) -> bytes:
    is_dossier, files = file
    return proofs.encode_proofs(files) if is_dossier else proofs.encode_proof(files[0])


def decode_any_body(raw: bytes) -> Any:
    """The body of a frame, its kind guessed as its head suggests."""
    if len(raw) == messages.VOTE_BYTES:
        return messages.decode_body(messages.VOTE, raw)
    kind = messages.CERTIFICATE if raw[:1] == b"\x96" else messages.PROPOSAL
    return messages.decode_body(kind, raw)


def encode_any_body(message: messages.Message) -> bytes:
    return messages.decode_frame(messages.encode_message(message))[1]


PROVIDER_FRAMES = tuple(
    f"infer_{kind}" for kind in ("Accepted", "Tokens", "Alive", "Finished", "RefusedFrame")
)
SINGLE_PROOFS = tuple(name for name in names("proof_") if name != "proof_dossier")


def beside(decode_many: Callable[[list[bytes]], list[Any]], good: str, raw: bytes) -> Any:
    """What a decoder of many makes of `raw` between two good ones."""
    neighbour = EXAMPLES[good].raw
    first, found, last = decode_many([neighbour, raw, neighbour])
    assert first == last
    return found


# fmt: off
PARSERS: dict[Callable[..., Any], Parser] = {
    messages.decode_vote: Parser(
        messages.decode_vote, messages.encode_vote, ("prevote", "precommit_nil")),
    messages.decode_proposal: Parser(
        messages.decode_proposal, messages.encode_proposal, ("proposal", "proposal_again")),
    messages.decode_status: Parser(
        messages.decode_status, messages.encode_status, ("status",)),
    messages.decode_frame: Parser(
        messages.decode_frame, lambda frame: messages.encode_frame(*frame), ("frame",)),
    messages.decode_message: Parser(
        messages.decode_message, messages.encode_message, ("frame",)),
    messages.decode_body: Parser(
        decode_any_body, encode_any_body, ("prevote", "proposal_again", "certificate")),
    certificate.decode_certificate: Parser(
        certificate.decode_certificate, certificate.encode_certificate, ("certificate",)),
    evidence.decode_evidence: Parser(
        evidence.decode_evidence, evidence.encode_evidence, names("evidence_")),
    skipping.decode_light_block: Parser(
        skipping.decode_light_block, skipping.encode_light_block, ("light_block",)),
    pastblocks.decode_past_block: Parser(
        pastblocks.decode_past_block, pastblocks.encode_past_block, ("past_block",)),
    attacks.decode_attack: Parser(
        attacks.decode_attack, attacks.encode_attack, ("light_attack",)),
    accusations.decode_accusation: Parser(
        accusations.decode_accusation, accusations.encode_accusation,
        (*names("evidence_"), "light_attack")),
    validators.decode_validators: Parser(
        validators.decode_validators, validators.encode_validators, ("validators",)),
    header.decode_header: Parser(header.decode_header, header.encode_header, ("header",)),
    execute.decode_tx_leaf: Parser(
        execute.decode_tx_leaf, lambda pair: execute.encode_tx_leaf(*pair), ("tx_leaf",)),
    proofs.decode_proof: Parser(proofs.decode_proof, proofs.encode_proof, SINGLE_PROOFS),
    proofs.decode_proofs: Parser(decode_file, encode_file, names("proof_")),
    payouts.decode_payout: Parser(
        payouts.decode_payout, payouts.encode_payout, names("payout_")),
    receipts.decode_receipt: Parser(
        receipts.decode_receipt, receipts.encode_receipt, ("receipt",)),
    receipts.decode_receipts: Parser(
        lambda raw: beside(receipts.decode_receipts, "receipt", raw),
        receipts.encode_receipt, ("receipt",)),
    receipts.decode_many_credits: Parser(
        lambda raw: beside(receipts.decode_many_credits, "credits", raw),
        receipts.encode_credits, ("credits",)),
    receipts.decode_credits: Parser(
        receipts.decode_credits, receipts.encode_credits, names("credits")),
    transactions.decode_transaction: Parser(
        transactions.decode_transaction, EXAMPLES["tx_Transfer"].encode,
        tuple(name for name in names("tx_") if name != "tx_leaf")),
    bundles.decode_header: Parser(
        bundles.decode_header, bundles.encode_header, ("bundle_header",)),
    bundles.decode_section: Parser(
        bundles.decode_section, bundles.encode_section, ("section",)),
    bundles.decode_body: Parser(bundles.decode_body, bundles.encode_body, ("bundle_body",)),
    claims.decode_header: Parser(claims.decode_header, claims.encode_header, ("index_header",)),
    claims.decode_row_leaf: Parser(
        claims.decode_row_leaf, claims.encode_row_leaf, ("row_leaf",)),
    claims.decode_statement: Parser(
        claims.decode_statement, claims.encode_statement, ("statement",)),
    exchange.decode_payer_frame: Parser(
        exchange.decode_payer_frame, exchange.encode_frame,
        ("infer_Start", "infer_Tick", "infer_Reveal", "infer_Cancel")),
    exchange.decode_provider_frame: Parser(
        exchange.decode_provider_frame, exchange.encode_frame, PROVIDER_FRAMES),
    orders.decode_order: Parser(orders.decode_order, orders.encode_order, ("order",)),
    orders.decode_sampling: Parser(
        orders.decode_sampling, orders.encode_sampling, ("sampling",)),
    orders.decode_voucher: Parser(orders.decode_voucher, orders.encode_voucher, ("voucher",)),
    orders.decode_offer: Parser(orders.decode_offer, orders.encode_offer, ("offer",)),
    blocks.decode_payload: Parser(
        blocks.decode_payload, blocks.encode_payload, ("payload",)),
    blocks.decode_block: Parser(blocks.decode_block, blocks.encode_block, ("block",)),
    genesis.decode_genesis: Parser(genesis.decode_genesis, genesis.encode_genesis, ()),
}
# fmt: on

OURS = {  # their callers have the exact length in hand, and assert it
    claims.decode_meta,
    validators.decode_priority,
}


def all_decoders() -> set[Callable[..., Any]]:
    found = set()
    for package in (consensus, node.ledger):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            held = vars(importlib.import_module(module.name))
            found |= {
                value
                for name, value in held.items()
                if name.startswith("decode_") and value.__module__ == module.name
            }
    return found


def word(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__name__}"


def goods_of(parser: Parser) -> list[bytes]:
    return [EXAMPLES[name].raw for name in parser.goods] or [GENESIS]


def attack(name: str, parser: Parser, goods: list[bytes], inputs: int) -> tuple[int, int]:
    """(taken, refused); fails on any other exception, and on what is not its own encoding."""
    rng, taken, refused = random.Random(name), 0, 0
    for number, raw in enumerate(hostile(rng, goods, inputs)):
        where = f"{name}, input {number}: {raw[:2_000].hex()}"
        try:
            value = parser.decode(raw)
        except Invalid as refusal:
            refused += bool(WORD.fullmatch(refusal.code))
            continue
        except Exception as error:
            raise AssertionError(where) from error
        taken += 1
        assert parser.encode(value) == raw, where
    return taken, refused


def test_every_decoder_of_the_pure_floors_is_attacked() -> None:
    assert {word(f) for f in all_decoders()} == {word(f) for f in {*PARSERS, *OURS}}


@pytest.mark.parametrize("function", PARSERS, ids=word)
def test_nothing_but_invalid_escapes(function: Callable[..., Any]) -> None:
    parser = PARSERS[function]
    goods = goods_of(parser)
    for good in goods:
        assert parser.encode(parser.decode(good)) == good
    taken, refused = attack(word(function), parser, goods, INPUTS)
    assert taken + refused == INPUTS
    assert min(taken, refused) > INPUTS // 100, "neither only noise nor only harmless"


# ---- records of the state: read back from a disk that may have rotted, and shown by proofs


@cache
def records() -> dict[str, list[bytes]]:
    """Values by the name of their table, from the small chain, and of tables it never writes."""
    shared = {b"totals": "totals", b"validators": "members"}
    by_prefix = {table.prefix: table.name for table in all_tables() if table.prefix != b"\x1c"}
    found: dict[str, list[bytes]] = {table.name: [] for table in all_tables()}
    chain = Story().chain
    for outcome in chain.outcomes:
        for key, value in outcome.changes:
            prefix, rest = key[:1], key[1:]
            name = by_prefix.get(prefix) or shared.get(rest, "counter")
            if rest.startswith(b"leaving/"):
                name = "departures"
            if value is not None and len(found[name]) < 50:
                found[name].append(value)
    owner = PEOPLE[0].key
    for table, record in (
        (tables.VESTING, tables.Vesting(10**9, 5, 1, 12, 36)),
        (tables.UNBONDING, tables.Unbonding(0, owner, owner, 9, 1, 2)),
        (tables.SEAT, tables.Seat(1, 2)),
        (tables.PARAMETER, tables.Parameter((1, 2, 3))),
        (tables.USED_EVIDENCE, tables.UsedEvidence(1, 2, ((owner, 2_500),), 1)),
        (tables.CONDUCT, tables.Conduct(7, 1, 5, (1, 2), ((0, 1, 2, 3),), (1, 0))),
        (tables.FUND, tables.Fund(3, (1, 2), (0, 1), (4,), 5, 6)),
    ):
        found[table.name].append(table.encode(record))
    return found


def all_tables() -> list[Table[Any]]:
    return [value for value in vars(tables).values() if isinstance(value, Table)]


@pytest.mark.parametrize(
    "table", all_tables(), ids=lambda table: f"{table.prefix.hex()}-{table.name}"
)
def test_records_of_the_state_are_read_as_strictly(table: Table[Any]) -> None:
    goods = records()[table.name]
    assert goods, f"no record of {table.name}: give one"
    parser = Parser(table.decode, table.encode, ())
    taken, refused = attack(table.name, parser, goods, RECORD_INPUTS)
    assert taken + refused == RECORD_INPUTS
    assert min(taken, refused) > RECORD_INPUTS // 100


# ---- whole proof files


@pytest.mark.parametrize("name", names("proof_"))
def test_a_hostile_proof_file_is_refused_and_raises_nothing(name: str) -> None:
    """Through all steps: body, root, certificate or history. What holds shows what was shown, or
    that another key is absent, which is another true statement."""
    good = EXAMPLES[name].raw
    shown = [proof.shown for proof in light.verify_file(good, TRUST).proofs]
    held = 0
    for raw in hostile(random.Random(f"file {name}"), [good], FILE_INPUTS):
        report = light.examine(raw, TRUST)
        held += report.refusal is None
        for proof in report.proofs if report.refusal is None else ():
            assert proof.shown in shown or is_absence(proof.shown), raw.hex()
    assert 0 < held < FILE_INPUTS // 10


def is_absence(shown: proofs.Shown) -> bool:
    return isinstance(shown, proofs.StateShown) and shown.value is None


# ---- the tester tested


def test_a_parser_that_lets_something_else_out_is_caught() -> None:
    careless = Parser(lambda raw: json.loads(raw), lambda value: b"", ())
    with pytest.raises(AssertionError, match="careless, input"):
        attack("careless", careless, [bytes(8)], 100)


def test_a_parser_that_takes_a_second_form_is_caught() -> None:
    lenient = Parser(lambda raw: raw.rstrip(b"\0"), lambda value: value, ())
    with pytest.raises(AssertionError, match="lenient, input"):
        attack("lenient", lenient, [bytes(8)], 100)
