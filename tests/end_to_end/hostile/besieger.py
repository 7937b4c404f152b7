"""The attackers' process: runs the attacks that it is told on stdin, one after another.

The first line says whom: an address, the chain's id, a blob's. A line with a name begins an attack,
and is answered by an empty one when its first bytes are on their way; an empty line ends it, and is
answered by what it did, in JSON.
"""

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Final

import trio

sys.path.insert(0, str(Path(__file__).parent))
from attacking import Siege  # found by the line above
from attacks import ATTACKS

BEGIN_S: Final = 20.0  # then it attacks nobody, and the test will say so


async def run(siege: Siege, name: str, end: trio.Event) -> None:
    """The attack until it is over, or `end` is set. One that fails says why: it attacked nobody."""
    siege.sent, siege.peers = 0, []
    why = ""

    async def attack() -> None:
        nonlocal why
        try:
            await ATTACKS[name].run(siege)
        except Exception:  # noqa: BLE001  # told to the test
            why = traceback.format_exc()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attack)
        with trio.move_on_after(BEGIN_S):
            while not (siege.sent or why):  # noqa: ASYNC110  # the attacks only count
                await trio.sleep(0.01)
        print(flush=True)  # noqa: T201  # as below
        await end.wait()
        nursery.cancel_scope.cancel()
    told = {"sent": siege.sent, "peers": siege.peers, "reached": list(siege.reached), "why": why}
    print(json.dumps(told), flush=True)  # noqa: T201  # this is how the test learns it


async def main() -> None:
    logging.getLogger("libp2p").setLevel(logging.CRITICAL + 1)
    siege, end = None, trio.Event()
    async with trio.open_nursery() as nursery:
        lines, told = trio.lowlevel.FdStream(0), b""
        while part := await lines.receive_some(4_096):
            *whole, told = (told + part).split(b"\n")
            for line in whole:
                if siege is None:
                    address, chain_id, blob_id = line.decode().split()
                    siege = Siege(address, bytes.fromhex(chain_id), bytes.fromhex(blob_id))
                elif line:
                    end = trio.Event()
                    nursery.start_soon(run, siege, line.decode(), end)
                else:
                    end.set()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
