"""What the devnet does from start to end, stage by stage, and what it says of it.

Why stages with names: a demo that fails must say where; it succeeds only when a light client with
nothing but the genesis has verified the receipt and, when the challenge window has passed, the
balance of the contributor who earned.
What this file does not know: how a terminal is drawn; a `Teller` is handed in.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import trio

from consensus.primitives.errors import Invalid
from node.devnet.checking import Checker
from node.devnet.children import Child, ChildFailed, stop_all, wait_answering, watch
from node.devnet.folder import clear, held
from node.devnet.goods import Goods, cache_folder, make_goods
from node.devnet.market import Market
from node.devnet.people import PROVIDERS, Settled, node_of, settle, settled, spender_of
from node.devnet.ports import NoPorts, free_ports
from node.devnet.publishing import Publisher
from node.devnet.telling import Ending, Teller, Wish
from node.devnet.trading import Trade
from node.devnet.traffic import run_traffic
from node.ledger.amounts import GRAINS_PER_OPEN
from node.ledger.genesis import decode_genesis
from node.ledger.wire.transactions import Transfer
from node.training.demo_texts import DOMAINS
from node.web.ask import Refusal, Unreachable

ONCE_S: Final = 300.0
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GIFT_GRAINS: Final = 100 * GRAINS_PER_OPEN
NO_ML_MEND: Final = "no torch here: models are left out (pip install torch==2.13.0, then make)"


async def run(wish: Wish, teller: Teller) -> Ending:
    """Tell the story; one that stays ends with a signal (INT, TERM or HUP), or a cancel.

    Raises HomeError for a folder that is not a devnet's, HomeInUse for one that is still used. A
    home of --once is removed at the end unless `keep` is set or a stage failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="olnode-devnet-")) if wish.once else wish.home
    with held(folder):
        if wish.reset:
            clear(folder)
        return await _told(folder, wish, teller)


async def _told(folder: Path, wish: Wish, teller: Teller) -> Ending:
    story = _Story(folder, wish, teller)
    ending = story.ending
    try:
        # Heard until the last daemon is down: a second Ctrl-C must not leave the others alone.
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_at_signal, signals, nursery.cancel_scope, ending)
                goods = await story.make_goods()
                with trio.fail_after(ONCE_S if wish.once else float("inf")):
                    await story.tell(goods)
                nursery.cancel_scope.cancel()
    except* (Invalid, ChildFailed, NoPorts, Refusal, Unreachable, trio.TooSlowError) as group:
        error = _first_of(group)
        is_late = isinstance(error, trio.TooSlowError)
        ending.failure = f"not done within {ONCE_S:.0f} s" if is_late else str(error)
        ending.log = error.log if isinstance(error, ChildFailed) else ""
    finally:
        if wish.once and not wish.keep and not ending.failure:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            ending.facts["home"] = str(folder)
    return ending


async def _end_at_signal(
    signals: AsyncIterator[int], scope: trio.CancelScope, ending: Ending
) -> None:
    async for number in signals:
        ending.signal = number
        scope.cancel()


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Story:
    def __init__(self, folder: Path, wish: Wish, teller: Teller) -> None:
        self._folder, self._wish, self._teller = folder, wish, teller
        self._say = teller.say
        self.ending = Ending()
        self._has_models = wish.with_models and find_spec("torch") is not None

    async def tell(self, goods: Goods | None) -> None:
        """Every stage after the training, in order."""
        land = settled(self._folder) or self._settle()
        genesis = decode_genesis(land.genesis)
        chain = genesis.chain_id.hex()
        self.ending.facts["chain_id"] = chain
        self._say("olnode devnet", f"chain {chain[:4]}…{chain[-2:]}   home {self._folder}")
        checker = Checker(land.genesis, self._folder / "proofs", land.validators[2])
        try:
            async with trio.open_nursery() as nursery:
                await self._start(land, nursery)
                market = Market(land.validators[0], genesis.chain_id)
                await self._agree(land, market, checker)
                if goods is not None:
                    await self._publish(land, market, goods)
                    await self._fund_payer(land, market)
                    await self._trade(land, goods, checker)
                elif not self._wish.once:
                    await trio.sleep_forever()
                for child in land.children:
                    child.stopping = True
                nursery.cancel_scope.cancel()
        finally:
            await stop_all(list(land.children))

    def _stage(self, name: str) -> None:
        self.ending.stage = name

    async def make_goods(self) -> Goods | None:
        """What is traded, trained or from the cache, however slow this machine is."""
        self._stage("training the base and its adapters")
        if not self._has_models:
            self._say("note", NO_ML_MEND if self._wish.with_models else "models are left out")
            return None
        # Two threads on two busy cores wait for each other: 69 steps where one thread made 139.
        threads = max(1, (os.cpu_count() or 1) - 1)

        def tell(what: str, done: int, total: int) -> None:
            trio.from_thread.check_cancelled()  # Ctrl-C ends a training here
            self._teller.progress(what, done, total)

        return await trio.to_thread.run_sync(make_goods, cache_folder(), threads, tell)

    def _settle(self) -> Settled:
        self._stage("settling")
        clear(self._folder)  # what was interrupted here before there were people
        # Also without models now: a later start with models must find its providers willing.
        models = tuple(domain.name for domain in DOMAINS)
        time_ms = time.time_ns() // 1_000_000
        return settle(self._folder, time_ms=time_ms, ports=free_ports(), models=models)

    async def _start(self, land: Settled, nursery: trio.Nursery) -> None:
        self._stage("starting the nodes")
        for child in land.children:
            child.start()
            nursery.start_soon(
                partial(watch, child, on_restart=self._tell_restart, on_stop=self._tell_stop)
            )
        for child in land.children:
            await wait_answering(child)
        names = " ".join(child.name for child in land.validators)
        also = ""
        if self._has_models:
            also = f"; {' '.join(child.name for child in land.validators[:PROVIDERS])} also serve"
        self._say("validators", f"{names}: a process and a database each{also}")

    async def _agree(self, land: Settled, market: Market, checker: Checker) -> None:
        """A transfer from the faucet, agreed on by all, its balance proved to a light client."""
        self._stage("agreeing on a block")
        began_s = trio.current_time()
        to = land.people.contributors[0]
        height = await market.do(land.people.faucet, Transfer(to.account, GIFT_GRAINS, b"gift"))
        took_s = trio.current_time() - began_s
        self._stage("proving a balance")
        proved = await checker.verify_account("gift.proof", to.account)
        self._say(
            "first block",
            f"height {height}, {took_s:.1f} s after a transfer was sent; balance proved in "
            f"{proved.size:,} bytes, VERIFIED offline in {proved.took_ms:.1f} ms",
        )

    async def _publish(self, land: Settled, market: Market, goods: Goods) -> None:
        """Providers, Datanets, contributions, models: each step its person's transaction."""
        self._stage("publishing Datanets and models")
        publisher = Publisher(market, land.validators[0], land.people, self._folder / "creator")
        for child in land.validators[:PROVIDERS]:
            await publisher.register_provider(node_of(child))
        numbers = await publisher.create_datanets(goods)
        await publisher.contribute(goods, numbers)
        labels = []
        for place, good in enumerate(goods.goods):
            self._teller.progress("publishing", place, len(goods.goods))
            await publisher.publish(goods, good, numbers[good.name])
            labels.append(f"{good.name}@1")
        self._teller.progress("publishing", len(goods.goods), len(goods.goods))
        people = len(land.people.contributors)
        self._say("models", f"{' '.join(labels)} on tiny-base")
        self._say("Datanets", f"{len(numbers)}, contributors {people}")

    async def _fund_payer(self, land: Settled, market: Market) -> None:
        self._stage("funding the payer")
        gift = Transfer(spender_of(land.payer), GIFT_GRAINS, b"to ask with")
        await market.do(land.people.faucet, gift)

    async def _trade(self, land: Settled, goods: Goods, checker: Checker) -> None:
        """A round of trade to its paid end; where the devnet stays, traffic meanwhile and after."""
        trade = Trade(land, goods, checker, self._teller, self.ending)
        await trade.run()
        if self._wish.once:
            await trade.prove_credit(is_alone=True)
            return
        self._stage("staying up")
        self._say("ask", f"olnode --home {land.payer.home} infer {trade.example()}")
        self._say("look", f"olnode --home {land.validators[0].home} status   (Ctrl-C ends all)")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_traffic, land, goods, self._wish.traffic_per_s, self._say)
            await trade.prove_credit(is_alone=False)

    def _tell_restart(self, child: Child) -> None:
        self.ending.facts.setdefault("restarted", []).append(child.name)
        self._say("restarted", f"{child.name} had died; it catches up from its own disk")

    def _tell_stop(self, child: Child) -> None:
        again = f"olnode --home {child.home} start"
        self._say("stopped", f"{child.name} was asked to end and is left alone; {again}")
