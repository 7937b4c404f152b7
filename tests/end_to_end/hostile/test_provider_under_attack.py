"""The stream `infer` under attack: who pays is answered meanwhile, and nothing of ours fails.

Its service is the product's own, over libp2p, with an engine that says the same always. A whole
node with an engine that computes is attacked in `test_provider_daemon_under_attack.py`.
"""

import contextlib
import sys
from functools import partial
from pathlib import Path

import trio
from bundle_kit import CHAIN
from exchange_kit import ASK, World, make_start, world_in
from ledger_kit import CREATOR, open_channel
from network_kit import seed_of, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from attacking import Siege  # found by the line above
from attacks_on_infer import frames_of, half_frames, silent_streams, spoilt_frames

from consensus.primitives.errors import Invalid
from p2p.errors import NetworkError
from p2p.limits import PROTOCOLS
from p2p.network import Libp2pNetwork

QUESTIONS, ANSWERED_MIN, ANSWER_S = 10, 8, 10.0
SENT_MIN = 60  # by then all three attacks are on


def network_of(number: int, *bootstrap: str) -> Libp2pNetwork:
    return Libp2pNetwork(
        seed=seed_of(number), chain_id=CHAIN, listen=["/ip4/127.0.0.1/tcp/0"], reach="devnet",
        bootstrap=bootstrap,
    )  # fmt: skip


async def ask_on(world: World) -> int:
    """How many questions, one after another, were answered in time."""
    answered = 0
    for _ in range(QUESTIONS):
        with contextlib.suppress(Invalid, NetworkError), trio.move_on_after(ANSWER_S):
            answered += bool(await world.payer.ask(ASK))
    return answered


async def test_a_provider_under_attack_answers_who_pays(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        provider = network_of(1)
        provider.accept("infer", world.service.serve, PROTOCOLS["infer"])
        await world.nursery.start(provider.run)
        payer = network_of(2, *provider.addresses())
        await world.nursery.start(payer.run)
        await wait_until(lambda: any(view.admitted for view in payer.peers()))
        world.open_stream = lambda offer: payer.open(provider.me, "infer")  # type: ignore[assignment]
        world.payer = world.new_payer()
        siege = Siege(provider.addresses()[0], CHAIN, b"")
        unpaid = make_start(open_channel(world.state, nonce=7), who=CREATOR)  # not its payer
        goods = frames_of(unpaid)
        async with trio.open_nursery() as nursery:
            for attack in (spoilt_frames, half_frames, silent_streams):
                nursery.start_soon(siege.again, partial(attack, siege, goods))
            await wait_until(lambda: siege.sent > SENT_MIN)
            assert await ask_on(world) >= ANSWERED_MIN
            nursery.cancel_scope.cancel()
        counted = provider.statistics()
        assert counted.restarts == 0
        assert not {where for where in counted.faults if where.startswith("handler")}
