"""p2p/WIRE.md says what the code does: its tables, and every byte of its examples."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import trio
from salt_kit import printed
from vectors.drawn import block_lines, blocks, plain_lines, told_lines
from vectors.make import COMMAND, NAMED, WIRE_DOCUMENT, wire_document
from vectors.peers import (
    ASK,
    KINDS,
    PAYER_FRAMES,
    PROVIDER_FRAMES,
    REPLY,
    SERVER,
    Said,
    Scenes,
    peer_examples,
)

from consensus import messages
from consensus.primitives.encoding import U63, Bytes, Record, decode
from consensus.primitives.errors import Invalid
from node.ledger.wire import exchange
from p2p import limits
from p2p.errors import Code, NetworkError
from p2p.framing import LENGTH_BYTES, frame
from p2p.limits import PENALTIES, PROTOCOLS, TOPICS, KiB, MiB
from p2p.peers import peer_id_text

TEXT = WIRE_DOCUMENT.read_text(encoding="utf-8")
OF_STREAMS, _, OF_GOSSIP = TEXT.partition("\n## 7. Gossip\n")  # some names are of both
BLOCKS = {name: body.splitlines() for name, body in NAMED.findall(TEXT)}
REQUESTS = [name for name, said in peer_examples().items() if said[0].by == ASK and len(said) == 2]
TO_SERVER = [name for name in REQUESTS if name != "bundles 1"]  # a provider's peer asks that
SIZES = {"B": 1, "KiB": KiB, "MiB": MiB}
ENVELOPE = Record(U63, U63, Bytes(limits.FRAME_BYTES_MAX))


def section_of(place: int) -> str:
    """The heading above a place of the text, without its marks."""
    return re.findall(r"^#+ (.+)$", TEXT[:place], re.MULTILINE)[-1].strip("`")


def rows(*heads: str) -> list[list[str]]:
    """The rows of the table with these heads."""
    head = "| " + " | ".join(heads) + " |\n"
    assert TEXT.count(head) == 1, head
    lines = TEXT.partition(head)[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def number(cell: str) -> float:
    """`4 MiB + 64 KiB`, `4,096`, `0.5`, `5 s`, `none`."""
    if cell == "none":
        return math.inf
    total = 0.0
    for part in cell.removesuffix(" s").replace(",", "").split(" + "):
        amount, _, unit = part.partition(" ")
        total += float(amount) * SIZES[unit or "B"]
    return total


# ---- examples


def test_every_example_is_shown_once_and_as_todays_code_makes_it() -> None:
    assert sorted(name for name, _ in NAMED.findall(TEXT)) == sorted(blocks())
    assert wire_document(TEXT, blocks()) == TEXT, f"`{COMMAND}` writes it anew"


@pytest.mark.parametrize("salt", ["1", "2"])
def test_examples_do_not_depend_on_the_salt_of_hashes(salt: str) -> None:
    text = "".join(block[0] + "\n" for block in NAMED.finditer(printed("peers", salt)))
    assert text == "".join(
        "\n".join([f"```hex {name}", *lines, "```"]) + "\n" for name, lines in blocks().items()
    )


def test_examples_stand_in_the_section_of_their_protocol_or_topic() -> None:
    for block in NAMED.finditer(TEXT):
        name = block[1].removeprefix("gossip ").split()[0]
        assert section_of(block.start()) == name, block[1]
        is_gossip = block.start() > len(OF_STREAMS)
        assert is_gossip == block[1].startswith("gossip "), block[1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_has_its_section_and_examples(protocol: str) -> None:
    """Mend: a scene in tests/vectors/peers.py, a section in p2p/WIRE.md."""
    assert OF_STREAMS.count(f"\n### `{protocol}`\n") == 1
    kinds = [f"{protocol} {kind}" for kind in KINDS.get(protocol, ())]
    if protocol == "consensus":
        kinds = [f"consensus {kind}" for kind in range(len(messages.FRAME_BODY_MAX))]
    elif protocol == "infer":
        kinds = [name for name in BLOCKS if name.startswith("infer ")]
        assert len(kinds) == len(PAYER_FRAMES) + len(PROVIDER_FRAMES)
    assert set(kinds or [protocol]) <= BLOCKS.keys()


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_its_section_and_examples(topic: str) -> None:
    assert OF_GOSSIP.count(f"\n### `{topic}`\n") == 1
    assert any(name.split()[:2] == ["gossip", topic] for name in BLOCKS)


def shown_whole(name: str, by: str) -> bytes | None:
    """The document's bytes of what one side says; None where some are left out."""
    said, here = "", ""
    for line in BLOCKS[name]:
        here = line[0] if line[0] != " " else here
        if here != by:
            continue
        if any(cut in line for cut in ("…", "  = ", "and so on")):
            return None
        told = re.fullmatch(r". +\d+  ([0-9a-f]+)(?: {2,}.*)?", line)
        said += told[1] if told else line[1:]
    return bytes.fromhex(said)


def test_what_is_shown_whole_is_the_message() -> None:
    whole = 0
    for name, example in peer_examples().items():
        for said in example:
            shown = shown_whole(name, said.by)
            assert shown in (None, said.raw), name
            whole += shown is not None
    assert whole >= 30


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_and_replies_are_within_their_limits(name: str) -> None:
    request, reply = peer_examples()[name]
    bounds = PROTOCOLS[name.split()[0]]
    assert len(request.raw) - LENGTH_BYTES <= bounds.request_max
    code, retry_ms, body = decode(reply.raw[LENGTH_BYTES:], ENVELOPE, len(reply.raw), "reply")
    assert (code, retry_ms) == (Code.NOT_FOUND if "refused" in name else Code.OK, 0)
    assert len(body) <= bounds.reply_max


async def test_servers_answer_the_documents_requests_as_it_says(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with trio.open_nursery() as nursery:
        scenes = Scenes(tmp_path, nursery)
        await scenes.play()
        for name in TO_SERVER:
            await trio.sleep(60)  # buckets fill again
            asked, told = peer_examples()[name]
            request = shown_whole(name, ASK) or asked.raw
            reply = await scenes.send(name.split()[0], request)
            # Whoever hands over a second time is told that nothing was new.
            assert reply == (told.raw[:-1] + b"\0" if name == "pool" else told.raw), name
        nursery.cancel_scope.cancel()


async def test_servers_refuse_the_documents_requests_with_a_byte_more(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with trio.open_nursery() as nursery:
        scenes = Scenes(tmp_path, nursery)
        await scenes.play()
        for name in REQUESTS:
            await trio.sleep(60)
            scenes.server.members.scores.forgive(scenes.client.me)
            body = peer_examples()[name][0].raw[LENGTH_BYTES:]
            if len(body) < PROTOCOLS[name.split()[0]].request_max:
                reply = await scenes.send(name.split()[0], frame(body + b"\0"))
                assert reply == frame(b"\x93\x01\x00\xc4\x00"), name
        nursery.cancel_scope.cancel()


async def test_clients_take_no_reply_with_a_byte_more(tmp_path: Path, autojump_clock: Any) -> None:
    """The tester tested: a scene goes well only if the client has read what was answered.

    All but of `pool`, whose count nobody needs; `ping`, `status` and `peers` keep the two together.
    """
    together = ("ping", "status", "peers")
    async with trio.open_nursery() as nursery:
        scenes = Scenes(tmp_path, nursery)
        await scenes.start()
        scenes.server.spoil = lambda name, body: body + b"\0" * (name not in together)
        for ask in (
            scenes.blocks, scenes.headers, scenes.light, scenes.bundles, scenes.snapshot,
            scenes.blob, scenes.offers,
        ):  # fmt: skip
            with pytest.raises((AssertionError, Invalid, NetworkError)):
                await ask()
            scenes.client.members.scores.forgive(scenes.server.me)
        nursery.cancel_scope.cancel()


# ---- how they are drawn


def test_lines_tell_every_byte_once() -> None:
    said = peer_examples()["status"][0]
    lines = block_lines("status", (said,))
    offsets = [int(line[2:5]) for line in lines]
    told = [len(bytes.fromhex(line[7:75].strip())) for line in lines]
    assert offsets == [sum(told[:place]) for place in range(len(told))]
    assert sum(told) == len(said.raw)


def test_meanings_that_do_not_fit_are_an_error() -> None:
    said = peer_examples()["ping"][0]
    with pytest.raises(ValueError, match="zip"):
        told_lines(said, ("a ping", "nonce", "and more"))


def test_one_changed_byte_changes_what_is_shown() -> None:
    for example in peer_examples().values():
        for by, raw in example:
            changed = raw[:-1] + bytes([raw[-1] ^ 1])
            assert plain_lines(Said(by, raw)) != plain_lines(Said(by, changed))


# ---- tables


def test_table_of_protocols_is_the_codes() -> None:
    told = rows(
        "protocol", "request ≤", "reply ≤", "timeout", "rate/s", "burst", "at once", "all peers",
        "open",
    )  # fmt: skip
    assert [row[0] for row in told] == list(PROTOCOLS)
    for name, *cells, is_open in told:
        bounds = PROTOCOLS[name]
        assert [number(cell) for cell in cells] == [
            bounds.request_max, bounds.reply_max, bounds.timeout_s, bounds.rate_s, bounds.burst,
            bounds.at_once_max, bounds.total_max,
        ], name  # fmt: skip
        assert is_open == ("no" if bounds.admitted_only else "yes")


def test_table_of_topics_is_the_codes() -> None:
    told = rows("topic", "data", "bytes ≤", "author rate/s", "burst", "queue", "when full")
    assert [row[0] for row in told] == list(TOPICS)
    for name, _, *cells, full in told:
        bounds = TOPICS[name]
        assert [number(cell) for cell in cells] == [
            bounds.bytes_max, bounds.author_rate_s, bounds.author_burst, bounds.queue_max,
        ], name  # fmt: skip
        assert full == bounds.full


def test_table_of_reply_codes_is_the_codes() -> None:
    told = {}
    for left, right in ((0, 1), (2, 3)):
        for row in rows("code", "meaning", "code", "meaning"):
            told[int(row[left])] = row[right].partition(":")[0]
    assert told == {int(code): code.name.lower().replace("_", " ") for code in Code}


def test_table_of_infer_codes_is_the_codes() -> None:
    table = rows("code of refused", "meaning", "code of refused", "meaning")
    told = {int(row[at]): row[at + 1] for row in table for at in (0, 2)}
    assert told == exchange.CODE_NAMES


def test_table_of_consensus_frames_is_the_codes() -> None:
    told = rows("kind", "body", "bytes ≤")
    assert [int(row[0]) for row in told] == list(range(len(messages.FRAME_BODY_MAX)))
    assert tuple(number(row[2]) for row in told) == messages.FRAME_BODY_MAX


def test_table_of_points_is_the_codes() -> None:
    told = [row[0].replace("`", "").split() for row in rows("points", "for")]
    assert {reason: int(points) for points, reason in told} == PENALTIES


def test_table_of_limits_is_the_codes() -> None:
    for row in rows(*("name", "value") * 3):
        for at in (0, 2, 4):
            assert number(row[at + 1]) == getattr(limits, row[at]), row[at]


def test_names_that_peers_are_spoken_to_by() -> None:
    from p2p.host import MESHSUB, protocol_text, topic_text

    chain_id = peer_examples()["status"][0].raw[8:40]  # behind length, array, version and head
    assert topic_text("txs", chain_id) == f"/olnode/txs/1/{chain_id.hex()[:16]}"
    assert "`/olnode/<name>/1/<first 16 hex digits of chain_id>`" in TEXT
    assert f"`{MESHSUB}`" in TEXT
    assert f"`{protocol_text('<protocol>')}`" in TEXT
    assert f"{SERVER.key.hex()[:8]}…" in TEXT
    assert f"`{peer_id_text(SERVER.key)}`" in TEXT


def test_objects_are_named_as_in_the_vectors() -> None:
    from vectors.agreement import agreement_examples
    from vectors.market import market_examples

    known = market_examples().keys() | agreement_examples().keys()
    for name, *_ in rows("object", "fields"):
        assert set(re.findall(r"\w+", name.removesuffix(" and others"))) <= known, name


def test_both_sides_of_a_request_are_marked() -> None:
    for name in REQUESTS:
        marks = {line[0] for line in BLOCKS[name]} - {" "}
        assert marks == {ASK, REPLY}, name
