"""`olnode verify`: VERIFIED only from what the reader trusts, and 6 for any other byte."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chain_kit import devnet
from stored_kit import Told
from unit.cli.calls import SCHEMAS, asked, ledger_of
from unit.web.behind import DISCLOSURE, ID, Behind

from consensus.primitives.errors import Invalid
from node.cli.main import run
from node.cli.trust import named_block
from node.cli.verify import OPENED, _share_lines, _sketch_lines, _verified
from node.ledger.genesis import encode_genesis
from node.light import examine, trust_block
from node.wallet import disclosure
from node.wallet.disclosure import Disclosure
from node.web import answers
from node.web.app import disclosure_shown
from node.web.proving import receipt_file

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proof file, the genesis it stands on, and the id of its block."""
    folder = tmp_path_factory.mktemp("files")
    told = Told(tmp_path_factory.mktemp("home"))
    view = told.view()
    raw = receipt_file(view, told.receipt)
    assert raw is not None
    (folder / "proof").write_bytes(raw)
    (folder / "genesis").write_bytes(encode_genesis(told.made.genesis))
    block_id = view.get_header(told.paid_height).block_id().hex()
    (folder / "trust").write_text(f"{told.paid_height}:{block_id}")
    told.made.chain.close()
    return folder


def verify(folder: Path, file: str, *words: str) -> int:
    home = ["--home", str(folder / "no-home")]
    return run([*home, "verify", str(folder / file), "--genesis", str(folder / "genesis"), *words])


def test_each_step_is_shown_and_the_last_word_is_verified(folder: Path, capsys: Capture) -> None:
    assert verify(folder, "proof") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "VERIFIED"
    assert len([line for line in lines if line.startswith("  ok  ")]) >= 5


def test_one_trusted_block_is_enough(folder: Path, capsys: Capture) -> None:
    assert verify(folder, "proof", "--trust", (folder / "trust").read_text(), "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["verified"]) == ("olnode.verify/1", True)


def test_another_trusted_block_refuses(folder: Path, capsys: Capture) -> None:
    height = (folder / "trust").read_text().partition(":")[0]
    assert verify(folder, "proof", "--trust", f"{height}:{'00' * 32}") == 6
    out, err = capsys.readouterr()
    assert "VERIFIED" not in out.splitlines()
    assert "NOT VERIFIED" in err


def test_another_chain_refuses(folder: Path, capsys: Capture) -> None:
    other = encode_genesis(devnet(split="whitepaper"))
    (folder / "other").write_bytes(other)
    words = ["verify", str(folder / "proof"), "--genesis", str(folder / "other"), "-o", "json"]
    assert run(words) == 6
    assert json.loads(capsys.readouterr().out)["code"] == "proof.chain"


@pytest.mark.parametrize("place", [0, 1, 40, 200, 700, -1])
def test_one_changed_byte_refuses(folder: Path, place: int) -> None:
    raw = bytearray((folder / "proof").read_bytes())
    raw[place] ^= 1
    (folder / "forged").write_bytes(raw)
    assert verify(folder, "forged") == 6


@pytest.mark.parametrize("words", [["--trust", "7"], ["--trust", "x:" + "00" * 32]])
def test_trust_that_is_none_is_a_usage_fault(folder: Path, words: list[str]) -> None:
    assert verify(folder, "proof", *words) == 2


def verify_by_block(folder: Path, file: str, named: str) -> int:
    """Without a home and without a genesis."""
    home = ["--home", str(folder / "no-home")]
    return run([*home, "verify", str(folder / file), "--trust", named])


def test_a_trusted_block_needs_no_genesis(folder: Path, capsys: Capture) -> None:
    named = (folder / "trust").read_text()
    assert verify_by_block(folder, "proof", named) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "VERIFIED"
    height = named.partition(":")[0]
    assert verify_by_block(folder, "proof", f"{height}:{'00' * 32}") == 6
    capsys.readouterr()
    assert verify_by_block(folder, "proof", f"{int(height) + 1}:{named[-64:]}") == 6
    assert f"--trust {height}:BLOCK_ID" in capsys.readouterr().err, "only its own block will do"
    assert verify_by_block(folder, "proof", "abc") == 2
    (folder / "junk").write_bytes(b"junk")
    assert verify_by_block(folder, "junk", named) == 6


def test_a_changed_byte_is_refused_under_a_trusted_block_alone(folder: Path) -> None:
    raw, named = (folder / "proof").read_bytes(), (folder / "trust").read_text()
    for place in range(0, len(raw), 97):
        (folder / "flipped").write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        before = examine(raw, trust_block(*named_block(named), raw))
        flipped = (folder / "flipped").read_bytes()
        after = examine(flipped, trust_block(*named_block(named), flipped))
        shown = [proof.shown for proof in after.proofs]
        assert after.refusal is not None or shown == [proof.shown for proof in before.proofs]


def test_without_anything_to_trust_nothing_is_verified(folder: Path, capsys: Capture) -> None:
    words = ["--home", str(folder / "no-home"), "verify", str(folder / "proof")]
    assert run(words) == 2
    assert "nothing to trust" in capsys.readouterr().err


# ---- a receipt's shares

EXPLAIN = ("verify", ID.hex(), "--explain")


async def test_shares_that_hold_are_told_with_what_was_looked_at(
    home: Path, capsys: Capture
) -> None:
    told = await asked(capsys, ledger_of(), home, *EXPLAIN)
    assert told["schema"] == "olnode.verify.shares/1"
    assert (told["verdict"], told["drawn_rows"], told["index_rows"]) == ("true", 16, 120)


async def test_false_shares_end_with_the_status_of_what_is_not_verified(
    home: Path, capsys: Capture
) -> None:
    false = replace(Behind().checked, verdict="false", why="row.paid")
    told = await asked(capsys, ledger_of(checked=false), home, *EXPLAIN, status=6)
    assert told["what"].endswith("row.paid")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "5 paid rows, 3 of the panel, 16 drawn of 120"),
        ({"drawn_rows": 120}, "all 120 rows of the index were scanned"),
        ({"verdict": "unknown", "why": "claim.hidden"}, "nothing was checked"),
        ({"index_rows": 0, "paid_rows": 0, "drawn_rows": 0}, "nothing is claimed"),
    ],
)
def test_what_was_looked_at_is_said_in_words(fields: dict[str, Any], line: str) -> None:
    told = answers.as_json(replace(Behind().checked, **fields))
    lines = _verified(_share_lines(told), told)
    assert any(line in one for one in lines)
    assert (lines[-1] == "VERIFIED") == (told["verdict"] == "true")


async def test_shares_that_this_node_cannot_check_are_not_verified(
    home: Path, capsys: Capture
) -> None:
    """Exit 0 says that all holds: a script would believe it of what nobody looked at."""
    hidden = replace(Behind().checked, verdict="unknown", why="claim.hidden")
    told = await asked(capsys, ledger_of(checked=hidden), home, *EXPLAIN, status=1)
    assert (told["code"], "nothing was checked" in told["what"]) == ("claim.hidden", True)


# ---- and its sketch


@pytest.fixture
def kept(home: Path) -> Path:
    path = home / "kept"
    path.write_text(json.dumps(answers.as_json(disclosure_shown(ID, DISCLOSURE))))
    return path


async def test_sketch_made_again_is_told_beside_the_shares(
    home: Path, kept: Path, capsys: Capture
) -> None:
    behind = ledger_of()
    told = await asked(capsys, behind, home, *EXPLAIN, "--kept", str(kept))
    assert (told["schema"], told["verdict"], told["shares"]) == (
        "olnode.verify.sketch/1", "pass", "true",
    )  # fmt: skip
    assert set(SCHEMAS[told["schema"]]) <= told.keys()
    assert behind.asked == [(ID, DISCLOSURE)]


@pytest.mark.parametrize("verdict", ["suspect", "fail"])
async def test_sketch_that_differs_ends_with_the_status_of_what_is_not_verified(
    home: Path, kept: Path, capsys: Capture, verdict: str
) -> None:
    behind = ledger_of(audited=replace(Behind().audited, verdict=verdict, why="sketch"))
    told = await asked(capsys, behind, home, *EXPLAIN, "--kept", str(kept), status=6)
    assert told["code"] == f"sketch.{verdict}"


@pytest.mark.parametrize(
    ("code", "word"),
    [("disclosure.receipt", "another receipt's"), ("disclosure.prompt", "not of its prompt")],
)
async def test_kept_file_that_does_not_open_the_receipt_is_not_verified(
    home: Path, kept: Path, capsys: Capture, code: str, word: str
) -> None:
    class Refusing(Behind):
        async def audit(self, receipt: bytes, told: Disclosure) -> answers.SketchAudit | None:
            raise Invalid(code)

    told = await asked(capsys, Refusing(), home, *EXPLAIN, "--kept", str(kept), status=6)
    assert (told["code"], word in told["what"]) == (code, True)


def test_every_refusal_of_what_was_kept_has_words() -> None:
    raised = re.findall(r'Invalid\("(disclosure\.\w+)"', inspect.getsource(disclosure))
    assert raised
    assert set(OPENED) == {*raised, "disclosure.receipt"}


async def test_false_shares_are_told_before_any_sketch_is_made(
    home: Path, kept: Path, capsys: Capture
) -> None:
    behind = ledger_of(checked=replace(Behind().checked, verdict="false", why="row.paid"))
    told = await asked(capsys, behind, home, *EXPLAIN, "--kept", str(kept), status=6)
    assert (told["code"], behind.asked) == ("row.paid", [])


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "cosines 0.999900 and 1.000000, 3 bps of the shares move, 120 bps more or less"),
        ({}, "are paid (fp32: 0.995, 50 and 1500 bps)"),
        ({"verdict": "fail", "why": "sketch"}, "the sketch made again is another"),
        ({"early_ppm": 0, "middle_ppm": 0}, "states no sketch, and none can be made"),
        ({"verdict": "fail", "why": "sketch", "early_ppm": 0}, "the sketch made again is another"),
        ({"verdict": "fail", "why": "no_sketch", "early_ppm": 0}, "states no sketch, but one can"),
        ({"verdict": "fail", "why": "credits", "early_ppm": 0}, "are not what the statement"),
    ],
)
def test_what_a_sketch_gave_is_said_in_words(fields: dict[str, Any], line: str) -> None:
    told = answers.as_json(replace(Behind().audited, **fields))
    assert any(line in one for one in _sketch_lines(told))


@pytest.mark.parametrize("content", [b"no json", b"[1]", b"\xff\xfe"])
async def test_what_no_infer_kept_is_a_usage_fault(
    home: Path, capsys: Capture, content: bytes
) -> None:
    (home / "kept").write_bytes(content)
    words = (*EXPLAIN, "--kept", str(home / "kept"))
    told = await asked(capsys, ledger_of(), home, *words, status=2)
    assert "infer --keep" in told["what"]


async def test_kept_texts_are_about_a_receipt(home: Path, kept: Path, capsys: Capture) -> None:
    words = ("verify", "proof", "--kept", str(kept))
    told = await asked(capsys, ledger_of(), home, *words, status=2)
    assert "--explain" in told["mend"]


async def test_what_is_no_receipts_id_is_told(home: Path, capsys: Capture) -> None:
    told = await asked(capsys, ledger_of(), home, "verify", "proof", "--explain", status=2)
    assert "RECEIPT" in told["what"]
