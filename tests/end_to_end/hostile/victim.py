"""A guarded node as its own process: prints its address, then its counters for each line read."""

import json
import sys

import trio
from network_kit import CHAIN, seed_of

from p2p.limits import PROTOCOLS, TOPICS
from p2p.network import Libp2pNetwork, Verdict


def resident_mb() -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def echo(peer: bytes, body: bytes) -> bytes:
    return body


async def fail(peer: bytes, told: object) -> bytes:
    raise RuntimeError("boom")


def judge(forwarder: bytes, author: bytes, data: bytes) -> Verdict:
    return Verdict.ACCEPT if 1 // (data[0] - ord("0")) >= 0 else Verdict.REJECT


async def main(number: int, bootstrap: list[str]) -> None:
    network = Libp2pNetwork(
        seed=seed_of(number),
        chain_id=CHAIN,
        listen=["/ip4/127.0.0.1/tcp/0"],
        reach="devnet",
        bootstrap=bootstrap,
    )
    network.serve("blocks", echo, PROTOCOLS["blocks"])
    network.serve("headers", fail, PROTOCOLS["headers"])
    network.accept("infer", fail, PROTOCOLS["infer"])
    network.subscribe("txs", judge, TOPICS["txs"])
    votes = network.subscribe("votes", lambda *told: Verdict.ACCEPT, TOPICS["votes"])
    heard: dict[str, int] = {}

    async def listen() -> None:
        async for message in votes:
            author = message.author.hex()
            heard[author] = heard.get(author, 0) + 1

    async def speak() -> None:
        count = 0
        while True:
            await trio.sleep(0.1)
            count += 1
            await network.publish("votes", network.me + b"%d %f" % (count, trio.current_time()))

    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        nursery.start_soon(listen)
        if number >= 50:  # those below only listen
            nursery.start_soon(speak)
        print(network.addresses()[0], flush=True)  # noqa: T201  # this is how the test learns it
        lines = trio.lowlevel.FdStream(0)
        while await lines.receive_some(64):
            counted = network.statistics()
            told = {
                "restarts": counted.restarts,
                "admitted": counted.admitted,
                "bans": counted.bans,
                "faults": dict(counted.faults),
                "heard": heard,
                "resident_mb": resident_mb(),
            }
            print(json.dumps(told), flush=True)  # noqa: T201  # as above
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2:])
