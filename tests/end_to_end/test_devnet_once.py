"""`olnode devnet --once`, as a user runs it: from a question to a paid contributor, all verified.

One of the daemons is killed with SIGKILL on the way: the story goes on, and it comes back.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.cli.main import run

pytestmark = pytest.mark.ml

VICTIM = "n1"  # a validator and a provider
SHOULD_TAKE_S = 400  # --once gives up by itself at 300 s


@pytest.fixture(scope="module")
def ended() -> Iterator[tuple[dict[str, Any], str]]:
    """The facts of a kept run, and what it told on the way."""
    command = [sys.executable, "-P", "-c", "from node.cli.main import main; main()"]
    command += ["devnet", "--once", "--keep", "-o", "json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    told: list[str] = []
    try:
        for line in process.stderr:
            told.append(line)
            if line.startswith(" maturing"):
                _kill(Path(_find(r"home (\S+)", told)) / VICTIM)
        out, _ = process.communicate(timeout=SHOULD_TAKE_S)
        assert process.returncode == 0, "".join(told)
        yield json.loads(out), "".join(told)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        shutil.rmtree(_find(r"home (\S+)", told), ignore_errors=True)


def _find(pattern: str, told: list[str]) -> str:
    found = re.search(pattern, "".join(told))
    assert found is not None
    return found[1]


def _kill(home: Path) -> None:
    """SIGKILL to the daemon that holds the home."""
    os.kill(int((home / "node.lock").read_text("ascii").split()[0]), signal.SIGKILL)


def test_every_question_is_answered_right_and_pays_who_taught_it(
    ended: tuple[dict[str, Any], str],
) -> None:
    answers = ended[0]["answers"]
    assert [one["model"] for one in answers] == ["contracts", "cooking", "astronomy"]
    assert all(one["is_right"] and one["is_owner"] for one in answers), answers
    assert len({one["paid_most"] for one in answers}) > 1


def test_fee_is_split_to_the_grain_and_the_record_that_earned_is_named(
    ended: tuple[dict[str, Any], str],
) -> None:
    facts = ended[0]
    assert sum(map(int, facts["split"].values())) == int(facts["fee"]) > 0
    assert "Ashmere" in facts["contributors"][0]["record"]


def test_three_of_four_validators_signed_and_the_proof_is_small(
    ended: tuple[dict[str, Any], str],
) -> None:
    facts = ended[0]
    assert len(facts["signers"]) >= 3
    assert set(facts["signers"]) <= {"n0", "n1", "n2", "n3"}
    assert facts["proof_bytes"] < 8_192


def test_another_provider_makes_the_same_sketch_of_the_answer(
    ended: tuple[dict[str, Any], str],
) -> None:
    sketch = ended[0]["sketch"]
    assert sketch["judge"] in ("n0", "n1")
    assert sketch["verdict"] == "pass"
    assert min(sketch["early_ppm"], sketch["middle_ppm"]) >= 999_900
    assert sketch["moved_bps"] <= 2


def test_credited_balance_is_what_the_payouts_said(ended: tuple[dict[str, Any], str]) -> None:
    facts = ended[0]
    gained = int(facts["balance_after"]) - int(facts["balance_before"])
    assert gained == int(facts["credited_grains"]) > 0
    assert facts["verified"] is True


def test_killed_daemon_came_back(ended: tuple[dict[str, Any], str]) -> None:
    assert ended[0]["restarted"] == [VICTIM]


def test_kept_proof_verifies_with_the_genesis_alone_and_not_when_changed(
    ended: tuple[dict[str, Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Path(ended[0]["home"])
    genesis = ["--genesis", str(home / "genesis")]
    proof = home / "proofs" / "receipt-contracts.proof"
    assert run(["verify", str(proof), *genesis]) == 0
    assert capsys.readouterr().out.endswith("VERIFIED\n")
    raw = bytearray(proof.read_bytes())
    raw[len(raw) // 2] ^= 1
    forged = tmp_path / "forged.proof"
    forged.write_bytes(raw)
    assert run(["verify", str(forged), *genesis]) == 6
