"""What the devnet trades in: records by contributor, and where trained things are kept."""

from pathlib import Path

import pytest

from node.attribution.datanets import content_hash
from node.devnet.goods import SEED, cache_folder, records_of
from node.training import demo_texts, demo_world
from node.training.demo_world import CONTRIBUTORS, COPIER, HONEST


@pytest.fixture(scope="module", params=[domain.name for domain in demo_texts.DOMAINS])
def world(request: pytest.FixtureRequest) -> demo_world.DemoDatanet:
    domain = next(d for d in demo_texts.DOMAINS if d.name == request.param)
    return demo_world.make_datanet(domain, SEED)


def test_each_contributor_gives_its_own_records_and_none_twice(
    world: demo_world.DemoDatanet,
) -> None:
    given = records_of(world)
    assert len(given) == CONTRIBUTORS
    for contributor, records in enumerate(given):
        own = {(r.prompt, r.completion) for r in world.records if r.contributor == contributor}
        assert len(records) == len({record.raw for record in records}) == len(own) > 0


def test_no_two_contributions_have_the_same_content(world: demo_world.DemoDatanet) -> None:
    """The ledger refuses a second one: the copier has all of another's records, in other order."""
    given = records_of(world)
    assert len({content_hash(records) for records in given}) == CONTRIBUTORS
    copied = {record.raw for record in given[COPIER]}
    victims = [i for i in range(HONEST) if {record.raw for record in given[i]} == copied]
    assert victims == [0]


def test_records_are_the_same_at_each_start(world: demo_world.DemoDatanet) -> None:
    """The cache of adapters is found by their content."""
    assert records_of(world) == records_of(world)


def test_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OLNODE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/olnode"
    monkeypatch.setenv("XDG_CACHE_HOME", "/a")
    assert cache_folder() == Path("/a/olnode")
    monkeypatch.setenv("OLNODE_CACHE", "/b")
    assert cache_folder() == Path("/b")
