"""The demo's world is the same every time, and each fact has exactly one owner."""

import hashlib
import json

import pytest

from node.training import demo_world
from node.training.demo_texts import DOMAINS, Domain
from node.training.demo_world import COPIER, HELD_BACK, HONEST, JUNK, make_datanet, things


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
@pytest.mark.parametrize("seed", [0, 2])
def test_datanet_has_the_measured_shape(domain: Domain, seed: int) -> None:
    net = make_datanet(domain, seed)
    assert (len(net.records), len(net.facts)) == (168, 36)
    owners = [fact.owner for fact in net.facts]
    assert [owners.count(owner) for owner in range(HONEST)] == [3] * HONEST
    assert len({(fact.thing, fact.relation.name) for fact in net.facts}) == 36
    for thing in {fact.thing for fact in net.facts}:
        assert len({fact.owner for fact in net.facts if fact.thing == thing}) == 2


def test_copier_gives_the_first_contributors_records_again() -> None:
    records = make_datanet(DOMAINS[0], 0).records
    mine = [(r.prompt, r.completion) for r in records if r.contributor == 0]
    assert [(r.prompt, r.completion) for r in records if r.contributor == COPIER] == mine
    assert [r.fact for r in records if r.contributor == JUNK] == [None] * len(mine)


def test_held_back_phrasings_are_in_no_record() -> None:
    for domain in DOMAINS:
        net = make_datanet(domain, 0)
        asked = {record.prompt for record in net.records}
        for fact in net.facts:
            assert len(fact.held_back_questions()) == len(HELD_BACK)
            assert not asked & set(fact.held_back_questions())
            assert fact.is_right(fact.answer())
            assert not fact.is_right(fact.answer() + " No.")


def test_base_never_sees_a_thing_of_the_datanets() -> None:
    documents = demo_world.demo_base_documents(3_000, 0)
    text = "\n".join(question + answer for question, answer in documents)
    for domain in DOMAINS:
        for thing in things(domain, 0):
            assert thing not in text


def test_world_is_promised_to_the_byte() -> None:
    """Other text is another recipe, whose quality nobody measured (page 50)."""
    nets = [
        [(r.contributor, r.prompt, r.completion) for r in make_datanet(domain, 0).records]
        for domain in DOMAINS
    ]
    told = json.dumps([nets, demo_world.demo_base_documents(500, 0)]).encode()
    assert hashlib.sha256(told).hexdigest() == (
        "6a86ad60c029e920dbcbff24c0994a4b6e70b0d10ac035ca8a38db88ad5c5743"
    )
