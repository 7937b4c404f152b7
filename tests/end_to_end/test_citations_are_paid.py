"""An answer that cites a record pays who gave it: asked, served and paid for over real sockets.

Three nodes (land_kit.py) speak libp2p on loopback. The adapter learns one thing, to end what it
says with `[1]`; which record stands before the prompt as `[1]` is the product's own choice.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from attribution_kit import CITING
from land_kit import Land, land_of, on_loopback, priced
from ledger_kit import CONTRIBUTORS
from release_kit import QUICK, TINY, release_of

from node.attribution.audit import Claim, Finding, recheck
from node.attribution.datanets import encode_prompt, make_record
from node.attribution.retrieval import Library, find_citations
from node.attribution.scorers import Answer as Said
from node.attribution.tokens import TextTokenizer
from node.ledger import tables
from node.ledger.wire import claims
from node.ledger.wire.receipts import attribution_root, decode_credits
from node.training.finetune import finetune
from node.training.publish import Release
from node.training.tiny_model import make_base
from node.wallet.buying import Answer

pytestmark = pytest.mark.ml

RECIPE = replace(TINY, hidden=32, inner=64)
TRAINING = replace(QUICK, rank=8, alpha=16, epochs=150, rate=1e-2)  # fewer: it may say no word
RECORDS = [make_record(f"What is thing {n}?", "So [1].") for n in range(12)]
GIVEN = [(1, RECORDS[:6]), (2, RECORDS[6:])]
ASKED = 8  # the row of contribution 2 that names it
GIVER = 2
PART_BPS = dict(CITING)[claims.RETRIEVAL]
QUESTION = f"What is thing {ASKED}?"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Its index's mix gives citations a fifth; a few seconds of one thread."""
    pytest.importorskip("torch").set_num_threads(1)
    home = tmp_path_factory.mktemp("release")
    base = make_base(home / "cache", RECIPE)
    adapter = finetune(base, RECORDS, TRAINING, home / "adapter")
    return priced(release_of(base, adapter, GIVEN, home, CITING))


async def test_contributor_of_the_cited_record_is_credited(
    tmp_path: Path, release: Release
) -> None:
    async with land_of(tmp_path, release, on_loopback()) as land:
        for number, records in GIVEN:
            await land.give(number, records)
        await land.publish(release)
        await land.wait_offered(1)
        answer = await land.ask("facts", QUESTION)

        assert attribution_root(answer.credits) == answer.receipt.attribution_root
        credits = dict(decode_credits(answer.credits))
        assert credits[GIVER] >= PART_BPS
        given = land.ledger.state.get(tables.CONTRIBUTION, GIVER)
        assert given.contributor == CONTRIBUTORS[GIVER - 1].key
        assert find_difference(land, release, answer) is None


def find_difference(land: Land, release: Release, answer: Answer) -> Finding | None:
    """What who has the texts, prompt and answer finds false of the receipt; the citation is as
    expected."""
    texts = (f"{record.prompt}\n{record.completion}" for record in RECORDS)
    retrieved = Library(texts).retrieve(QUESTION)
    assert retrieved == (ASKED,), "no other record names the thing"
    text = answer.text[0].decode()
    cited = find_citations(text, retrieved)
    assert [row for row, _ in cited] == [ASKED], text
    receipt = answer.receipt
    served = land.shop.book.find(receipt.channel, receipt.lane, receipt.seq, receipt.order_hash)
    held = land.provider.holdings.find_audited(1, 1)
    assert served is not None
    assert held is not None
    stated = decode_credits(answer.credits)
    claim = Claim(receipt.sketch_hash, stated, served.sketch, served.statement)
    prompt = encode_prompt(TextTokenizer(release.base_folder), QUESTION)
    said = Said.of(prompt, answer.ids)._replace(cited=cited)
    return recheck(*held, claim, answer=said)
