"""A file comes from several processes, though one lies, one dies, and we are killed twice."""

import os
import time
from pathlib import Path

import pytest
from blob_node import BlobNode

from node.ledger.wire.bundles import BODY_BYTES_MAX

CHUNKS = 40
SIZE = (CHUNKS << 20) - 17
WAIT_S = 60.0
SLOW_S = 0.05  # a chunk takes so much longer to be written: there is time to kill

HONEST, DYING, LYING, FETCHING = 1, 2, 3, 4


@pytest.fixture
def sources(tmp_path: Path):
    file = tmp_path / "content"
    file.write_bytes(os.urandom(SIZE))
    made = [
        BlobNode(number=number, home=tmp_path / str(number), serve=file, lies=number == LYING)
        for number in (HONEST, DYING, LYING)
    ]
    yield made
    for node in made:
        node.kill()


def test_a_killed_fetch_goes_on_where_it_was_past_a_liar_and_a_dead_source(
    tmp_path: Path, sources: list[BlobNode]
) -> None:
    """Nothing that was kept comes twice; what was on its way at each kill is at most 8 chunks."""
    told = [source.told() for source in sources]
    identity = told[0]["identity"]
    addresses = [each["address"] for each in told]

    def start() -> BlobNode:
        node = BlobNode(
            number=FETCHING, home=tmp_path / "mine", peers=addresses, fetch=identity, slow_s=SLOW_S
        )
        node.told()
        return node

    kept = 0
    for stage in (1, CHUNKS // 2):
        node = start()
        wait_for_chunks(node, max(stage, kept + 1))
        node.kill()
        kept = node.chunks_kept()
        assert stage <= kept < CHUNKS
    node = start()
    wait_for_chunks(node, kept + 2)
    sources[DYING - 1].kill()
    ended = node.told()
    node.kill()
    assert ended["error"] == ""
    counters = ended["counters"]
    assert counters["chunks_resumed"] == kept
    assert counters["chunks"] == CHUNKS - kept
    assert counters["chunks_false"] >= 1
    assert set(ended["penalties"]) == {"false_chunk"}, "the dead source is not at fault"
    assert (tmp_path / "mine" / "got" / "content").read_bytes() == (
        tmp_path / "content"
    ).read_bytes()
    assert list((tmp_path / "mine" / "blobs").glob("??/*.*")) == []
    here = [each["bytes_here"] for each in ended["progress"]]
    assert here == sorted(here)
    assert {each["bytes_total"] for each in ended["progress"]} == {SIZE}
    assert max(here) > kept << 20


def test_the_body_of_a_bundle_goes_on_where_a_kill_ended_it(tmp_path: Path) -> None:
    """The one source gives its first chunk and never the second, and nobody else has it yet."""
    file = tmp_path / "body"
    file.write_bytes(os.urandom(BODY_BYTES_MAX))
    nodes: list[BlobNode] = []

    def start(number: int, **options: object) -> BlobNode:
        nodes.append(BlobNode(number=number, home=tmp_path / str(number), **options))
        return nodes[-1]

    try:
        told = start(HONEST, lend=str(file), gives_first_only=True).told()
        fetch = {"peers": [told["address"]], "fetch_body": told["header"]}
        node = start(FETCHING, **fetch)
        node.told()
        wait_for_chunks(node, 1)
        node.kill()
        fetch["peers"] = [start(DYING, lend=str(file)).told()["address"]]
        node = start(FETCHING, **fetch)
        node.told()
        ended = node.told()
    finally:
        for each in nodes:
            each.kill()
    assert ended["error"] == ""
    assert (ended["counters"]["chunks_resumed"], ended["counters"]["chunks"]) == (1, 1)
    assert (tmp_path / str(FETCHING) / "got").read_bytes() == file.read_bytes()


def wait_for_chunks(node: BlobNode, count: int) -> None:
    latest_s = time.monotonic() + WAIT_S
    while node.chunks_kept() < count:
        assert time.monotonic() < latest_s, f"{node.chunks_kept()} of {count} chunks"
        time.sleep(0.005)
