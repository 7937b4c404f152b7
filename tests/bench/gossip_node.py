"""One node of `olnode bench gossip`: its network alone, in a process of its own.

It tells its address, then that it is meshed; a line `start AT_NS` begins its share of the load, and
when that is over it tells what it heard. All times are the machine's one monotonic clock.
Its judge does what the one of bundles does first and what costs most: shape, author, a number not
seen before, a signature. What it leaves out is the ledger, which a bench of gossip does not have.
"""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, Final

import trio
from bench.protocol import quiet
from network_kit import CHAIN, admitted, seed_of, wait_until

from consensus.primitives.encoding import U8, U63, Bytes, Record, decode, encode
from consensus.primitives.errors import Invalid
from p2p.host import Libp2pIdentity
from p2p.limits import MESH_LOW, TOPICS
from p2p.network import Gossip, Libp2pNetwork, PeerId, Verdict

TOPIC: Final = "bundles"
KIND: Final = 2  # of its messages
SIGNATURE_BYTES: Final = 64
BODY: Final = Record(U8, U63, U63, Bytes(2_048))  # kind, number, sent_ns, padding
MESSAGE_BYTES_MAX: Final = 4_096
MEET_S: Final = 60.0
SAMPLE_S: Final = 1.0
LOOK_S: Final = 0.05


class Judge:
    """Accepts each message of an author once, if it is signed."""

    def __init__(self, identity: Libp2pIdentity) -> None:
        self._identity = identity
        self._last: dict[bytes, set[int]] = defaultdict(set)

    def __call__(self, forwarder: PeerId, author: PeerId, data: bytes) -> Verdict:
        body, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        try:
            _, number, _, _ = decode(body, BODY, MESSAGE_BYTES_MAX, "bench.message")
        except Invalid:
            return Verdict.REJECT
        if number in self._last[author]:
            return Verdict.IGNORE
        if not self._identity.is_signed_by(author, body, signature):
            return Verdict.REJECT
        self._last[author].add(number)
        return Verdict.ACCEPT


def resident_mb() -> float:
    """Of this process."""
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def say(**told: object) -> None:
    """To the bench."""
    print(json.dumps(told), flush=True)  # noqa: T201


async def listen(heard: AsyncIterator[Gossip], late_ms: list[float]) -> None:
    """Note how old each message is; the inbox hands on what the judge took."""
    async for message in heard:
        now_ns = time.monotonic_ns()
        _, _, sent_ns, _ = decode(
            message.data[:-SIGNATURE_BYTES], BODY, MESSAGE_BYTES_MAX, "bench.message"
        )
        late_ms.append((now_ns - sent_ns) / 1e6)


async def speak(
    network: Libp2pNetwork, identity: Libp2pIdentity, *, count: int, every_s: float, size: int
) -> None:
    """`count` messages, evenly; one that was held up does not hold up those after it."""
    began_s = trio.current_time()
    for number in range(count):
        await trio.sleep_until(began_s + number * every_s)
        body = encode((KIND, number, time.monotonic_ns(), os.urandom(size)))
        await network.publish(TOPIC, body + identity.sign(body))


async def wait_for_all(late_ms: list[float], count: int, drain_s: float) -> None:
    """Until so many were heard, or no longer."""
    with trio.move_on_after(drain_s):
        while len(late_ms) < count:  # noqa: ASYNC110  # `listen` only counts
            await trio.sleep(LOOK_S)


async def sample(resident: list[float]) -> None:
    """Memory, each second."""
    while True:
        resident.append(round(resident_mb(), 1))
        await trio.sleep(SAMPLE_S)


async def main(
    number: int, nodes: int, peers: list[str], count: int, every_s: float, size: int, drain_s: float
) -> None:
    """A node that says `count` messages, one each `every_s`, and hears all others'."""
    identity = Libp2pIdentity(seed_of(number))
    network = Libp2pNetwork(
        seed=seed_of(number),
        chain_id=CHAIN,
        listen=["/ip4/127.0.0.1/tcp/0"],
        reach="devnet",
        bootstrap=peers,
    )
    heard = network.subscribe(TOPIC, Judge(identity), TOPICS[TOPIC])
    late_ms: list[float] = []
    lines = trio.lowlevel.FdStream(0)
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        nursery.start_soon(listen, heard, late_ms)
        say(address=network.addresses()[0])
        await meet(network, nodes)
        say(meshed=network.statistics().mesh_peers[TOPIC])
        word, at_ns = (await lines.receive_some(64)).split()
        assert word == b"start"
        nursery.start_soon(end_with_parent, lines, nursery.cancel_scope)
        await trio.sleep(max(0.0, (int(at_ns) - time.monotonic_ns()) / 1e9))
        resident: list[float] = []
        nursery.start_soon(sample, resident)
        cpu_s = time.process_time()
        await speak(network, identity, count=count, every_s=every_s, size=size)
        await wait_for_all(late_ms, count * (nodes - 1), drain_s)
        say(
            late_ms=[round(each, 2) for each in late_ms],
            cpu_s=time.process_time() - cpu_s,
            resident_mb=resident,
            **counted(network),
        )
        await trio.sleep_forever()  # until the bench has heard all of us


async def end_with_parent(lines: trio.lowlevel.FdStream, scope: trio.CancelScope) -> None:
    """Whoever started us closes our standard input when it ends, however it ends."""
    while await lines.receive_some(64):
        pass
    scope.cancel()


async def meet(network: Libp2pNetwork, nodes: int) -> None:
    """Until it is connected and in the topic's mesh."""
    wanted = min(MESH_LOW, nodes - 1)

    def has_met() -> bool:
        meshed = network.statistics().mesh_peers.get(TOPIC, 0)
        return admitted(network) >= wanted and meshed >= wanted

    await wait_until(has_met, MEET_S)


def counted(network: Libp2pNetwork) -> dict[str, Any]:
    """What explains a loss."""
    told = network.statistics()
    return {
        "messages": {f"{topic} {verdict}": n for (topic, verdict), n in told.messages.items()},
        "dropped": {f"{queue} {why}": n for (queue, why), n in told.queue_dropped.items()},
        "faults": dict(told.faults),
        "penalties": dict(told.penalties),
        "restarts": told.restarts,
        "peers": admitted(network),
    }


if __name__ == "__main__":
    quiet()
    trio.run(lambda: main(**json.loads(sys.argv[1])))
