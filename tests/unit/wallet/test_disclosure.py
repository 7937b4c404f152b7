"""What a payer shows of an answer opens its receipt, whole, or is refused with what does not."""

from typing import Any

import pytest
from unit.wallet.test_checks import (
    ANSWERS,
    NONCE,
    PROMPT,
    PROVIDER_NONCE,
    SKETCH,
    STATEMENT,
    good,
    purchase,
)

from consensus.primitives.errors import Invalid
from node.wallet.disclosure import Disclosure, check_disclosure

BOUGHT = purchase()
TOLD = Disclosure(BOUGHT.order_raw, NONCE, PROVIDER_NONCE, PROMPT, ANSWERS, SKETCH, STATEMENT)


def test_what_was_bought_opens_its_receipt() -> None:
    assert check_disclosure(TOLD, good(BOUGHT, sketched=True)) == BOUGHT.order


def test_receipt_without_a_sketch_is_opened_without_one() -> None:
    bare = TOLD._replace(sketch=b"", statement=b"")
    assert check_disclosure(bare, good(BOUGHT)) == BOUGHT.order


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"order": b"none"}, "disclosure.order"),
        ({"order": purchase(flags=1).order_raw}, "disclosure.order"),
        ({"prompt": (5, 6, 8)}, "disclosure.prompt"),
        ({"answers": (ANSWERS[0], (104,))}, "disclosure.answer"),
        ({"answers": ANSWERS[::-1]}, "disclosure.answer"),
        ({"payer_nonce": bytes(32)}, "disclosure.answer"),
        ({"provider_nonce": bytes(32)}, "disclosure.answer"),
        ({"sketch": b"\2" * 1_024}, "disclosure.sketch"),
        ({"statement": b"another"}, "disclosure.sketch"),
        ({"sketch": b"", "statement": b""}, "disclosure.sketch"),
    ],
)
def test_anything_else_is_refused(change: dict[str, Any], code: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_disclosure(TOLD._replace(**change), good(BOUGHT, sketched=True))
    assert refusal.value.code == code


def test_sketch_beside_a_receipt_that_states_none_is_refused() -> None:
    with pytest.raises(Invalid, match=r"disclosure\.sketch"):
        check_disclosure(TOLD, good(BOUGHT))
