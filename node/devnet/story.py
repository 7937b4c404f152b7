"""What the devnet does from start to end, stage by stage, and what it says of it.

Why stages with names: a demo that fails must say where; the exit is 0 only when a light client
with nothing but the genesis has verified what was agreed on.
What this file does not know: how a terminal is drawn; `say` is a callable.
"""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.errors import Invalid
from node import light
from node.config import load
from node.devnet.children import Child, ChildFailed, stop_all, wait_answering, watch
from node.devnet.goods import Goods, cache_folder, make_goods
from node.devnet.market import Market
from node.devnet.people import PROVIDERS, Person, Settled, settle, settled
from node.devnet.publishing import Publisher
from node.home import keystore_of
from node.ledger.addresses import account_of, account_text
from node.ledger.amounts import GRAINS_PER_OPEN
from node.ledger.genesis import decode_genesis
from node.ledger.wire.transactions import Transfer
from node.training.demo_texts import DOMAINS
from node.web.ask import Refusal, Unreachable

Say = Callable[[str], None]

ONCE_S: Final = 300.0
FIRST_PORT: Final = 27_017
PORT_STEP: Final = 10
PORTS: Final = 5
PORT_BASES_TRIED: Final = 50
GIFT_GRAINS: Final = 100 * GRAINS_PER_OPEN
PROOF_S: Final = 30.0
ASK_S: Final = 90.0
POLL_S: Final = 0.2


class StageFailed(Exception):
    """The story stopped at `stage`; the rest says why, in words for a person."""

    exit_status = 1

    def __init__(self, stage: str, why: str) -> None:
        super().__init__(f"{stage}: {why}")
        self.what = f"the devnet stopped at stage “{stage}”"
        self.why = why


async def run(
    *, home: Path, once: bool, keep: bool, reset: bool, traffic_per_s: float, say: Say
) -> int:
    """Tell the story; 0 when all of it came true, 1 when a stage failed.

    `once`: in a temporary home, removed at the end unless `keep` or a failure. Without it the
    network stays until a cancel. `traffic_per_s`: transfers a second meanwhile.
    """
    folder = Path(tempfile.mkdtemp(prefix="olnode-devnet-")) if once else home
    if reset and not once:
        shutil.rmtree(folder, ignore_errors=True)
    story = _Story(folder, say)
    failure: BaseException | None = None
    try:
        if once:
            with trio.fail_after(ONCE_S):
                await story.tell(stays=False, traffic_per_s=0.0)
        else:
            await story.tell(stays=True, traffic_per_s=traffic_per_s)
    except* (StageFailed, ChildFailed, Invalid, Refusal, Unreachable, trio.TooSlowError) as group:
        failure = _first_of(group)
    if failure is not None:
        say(f"FAILED at stage “{story.stage}”: {str(failure) or type(failure).__name__}")
        if isinstance(failure, ChildFailed):
            say(failure.log)
        say(f"everything is kept in {folder}")
        return 1
    if once and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Story:
    def __init__(self, folder: Path, say: Say) -> None:
        self._folder, self._say = folder, say
        self.stage = "settling"

    async def tell(self, *, stays: bool, traffic_per_s: float) -> None:
        """Every stage in order."""
        goods = await self._make_goods()
        known = settled(self._folder)
        land = known or await self._settle()
        genesis = decode_genesis(land.genesis)
        chain = genesis.chain_id.hex()
        self._say(f"olnode devnet   chain {chain[:4]}…{chain[-2:]}   home {self._folder}")
        try:
            async with trio.open_nursery() as nursery:
                await self._start(land, nursery)
                market = Market(land.validators[0], genesis.chain_id)
                await self._agree(land, market)
                if known is None:
                    await self._publish(land, market, goods)
                await self._ask_first(land, goods)
                if stays:
                    await self._stay(land, market, traffic_per_s)
                for child in land.children:
                    child.stopping = True
                nursery.cancel_scope.cancel()
        finally:
            await stop_all(list(land.children))

    async def _settle(self) -> Settled:
        self.stage = "settling"
        models = tuple(domain.name for domain in DOMAINS)
        time_ms = time.time_ns() // 1_000_000
        return settle(self._folder, time_ms=time_ms, ports=free_ports(), models=models)

    async def _start(self, land: Settled, nursery: trio.Nursery) -> None:
        self.stage = "starting the nodes"
        for child in land.children:
            child.start()
            nursery.start_soon(partial(watch, child, on_restart=self._tell_restart))
        for child in land.children:
            await wait_answering(child)
        names = ", ".join(child.name for child in land.validators)
        self._say(f" validators     {names} answer, each a process of its own")

    async def _agree(self, land: Settled, market: Market) -> None:
        """A transfer from the faucet, agreed on by all, its balance proved to a light client."""
        self.stage = "agreeing on a block"
        began_s = trio.current_time()
        to = land.people.contributors[0]
        height = await market.do(land.people.faucet, Transfer(to.account, GIFT_GRAINS, b"gift"))
        took_s = trio.current_time() - began_s
        self._say(f" settled        block {height}, {took_s:.1f} s after the transfer was sent")
        self.stage = "proving the balance"
        route = f"/ledger/accounts/{account_text(to.account)}/proof"
        proof = await _proof(land.validators[1], route)
        began_ns = time.perf_counter_ns()
        trust = light.trust_genesis(decode_genesis(land.genesis))
        light.verify_file(proof, trust)
        took_ms = (time.perf_counter_ns() - began_ns) / 1_000_000
        self._say(f" proof          {len(proof):,} bytes   VERIFIED offline in {took_ms:.1f} ms")

    async def _make_goods(self) -> Goods:
        self.stage = "training the base and its adapters"
        threads = os.cpu_count() or 1
        bar = _Bar(self._say)
        return await trio.to_thread.run_sync(make_goods, cache_folder(), threads, bar.tell)

    async def _publish(self, land: Settled, market: Market, goods: Goods) -> None:
        """Providers, Datanets, contributions, models: each step its person's transaction."""
        self.stage = "publishing Datanets and models"
        seller = land.validators[0]
        publisher = Publisher(market, seller, land.people, self._folder / "creator")
        for child in land.validators[:PROVIDERS]:
            await publisher.register_provider(node_of(child))
        numbers = await publisher.create_datanets(goods)
        await publisher.contribute(goods, numbers)
        labels = []
        for good in goods.goods:
            await publisher.publish(goods, good, numbers[good.name])
            labels.append(f"{good.name}@1")
        people = len(land.people.contributors)
        self._say(f" models         {' '.join(labels)} on tiny-base")
        self._say(f" Datanets       {len(numbers)}, contributors {people}")

    async def _ask_first(self, land: Settled, goods: Goods) -> None:
        """One question of a payer's own wallet, its receipt settled and verified."""
        self.stage = "asking a question"
        fact = goods.goods[0].world.facts[0]
        question = fact.held_back_questions()[0]
        spender = spender_of(land.payer)
        market = Market(land.validators[0], decode_genesis(land.genesis).chain_id)
        await market.do(land.people.faucet, Transfer(spender, GIFT_GRAINS, b"to ask with"))
        text, receipt = await _answer(land.payer, goods.goods[0].name, question)
        self._say(f" first order    {goods.goods[0].name}@1 “{question}” → “{text.strip()}”")
        self._say(f" receipt        {receipt['receipt'][:16]}… fee {receipt['fee']} grains")
        self.stage = "settling the receipt"
        route = f"/ledger/receipts/{receipt['receipt']}"
        shown = await _wait_for(land.payer, route)
        for role, grains in shown["split"].items():
            self._say(f"   {role:<12} {int(grains) / GRAINS_PER_OPEN:.9f} OPEN")
        for credit in sorted(shown["credits"], key=lambda one: -one["share_bps"])[:3]:
            name = land.people.name_of(account_of(credit["contributor"]))
            self._say(f"   {name or credit['contributor']}: {credit['share_bps'] / 100:.2f} %")
        self.stage = "verifying the receipt"
        proof = await _proof(land.validators[2], f"{route}/proof")
        began_ns = time.perf_counter_ns()
        light.verify_file(proof, light.trust_genesis(decode_genesis(land.genesis)))
        took_ms = (time.perf_counter_ns() - began_ns) / 1_000_000
        self._say(
            f" settled        block {shown['height']}   proof {len(proof):,} bytes   "
            f"VERIFIED offline in {took_ms:.1f} ms"
        )

    async def _stay(self, land: Settled, market: Market, traffic_per_s: float) -> None:
        self.stage = "staying up"
        self._say(f" use            olnode --home {land.payer.home} status   (Ctrl-C ends it)")
        sent = 0
        while True:
            if traffic_per_s <= 0:
                await trio.sleep_forever()
            await trio.sleep(1 / traffic_per_s)
            people = land.people.contributors
            to = people[sent % len(people)].account
            try:
                await market.do(land.people.faucet, Transfer(to, 1, b"traffic"))
            except (Refusal, Unreachable, Invalid) as error:
                self._say(f" traffic        refused: {error}")
                await trio.sleep(1)
            sent += 1

    def _tell_restart(self, child: Child) -> None:
        self._say(f" restarted      {child.name} had died; it catches up from its own disk")


def node_of(child: Child) -> Person:
    """The account of a node's own key, which a devnet keeps in the clear."""
    key = keystore_of(load(child.home)).unlock("node", None)
    return Person(child.name, key.network_seed())


def spender_of(child: Child) -> bytes:
    """The account that the payer's wallet spends from."""
    found = keystore_of(load(child.home)).find("spending")
    assert found is not None
    return found.public_key


async def _answer(child: Child, model: str, question: str) -> tuple[str, dict[str, Any]]:
    """Ask until a provider is known; the text and the receipt."""

    def ask() -> tuple[str, dict[str, Any]]:
        text = ""
        receipt: dict[str, Any] = {}
        body = {"model": model, "prompt": question, "max_tokens": 48}
        for line in child.node.stream("/infer", body):
            text += line.get("text", "")
            receipt = line.get("receipt", receipt)
        return text, receipt

    refusal: Refusal | None = None
    with trio.move_on_after(ASK_S):
        while True:
            try:
                return await trio.to_thread.run_sync(ask)
            except Refusal as error:
                refusal = error
                await trio.sleep(POLL_S)
    raise StageFailed("asking a question", str(refusal or "no answer"))


async def _wait_for(child: Child, route: str) -> dict[str, Any]:
    """The JSON at `route`, as soon as there is any."""
    with trio.move_on_after(PROOF_S):
        while True:
            try:
                return await trio.to_thread.run_sync(child.node.get, route)
            except Refusal:
                await trio.sleep(POLL_S)
    raise StageFailed("settling the receipt", f"{child.name} did not settle it")


class _Bar:
    """Says at each tenth of a long step how far it is."""

    def __init__(self, say: Say) -> None:
        self._say, self._last = say, ("", -1)

    def tell(self, what: str, done: int, total: int) -> None:
        """A line at each tenth."""
        here = (what, 10 * done // max(1, total))
        if here != self._last:
            self._last = here
            self._say(f" training       {what} {10 * here[1]} %")


async def _proof(child: Child, route: str) -> bytes:
    """The proof file at `route`, as soon as the node can make it."""
    with trio.move_on_after(PROOF_S):
        while True:
            try:
                return await trio.to_thread.run_sync(child.node.get_bytes, route)
            except Refusal:
                await trio.sleep(POLL_S)
    raise StageFailed("proving the balance", f"{child.name} gave no proof in {PROOF_S:.0f} s")


def free_ports() -> tuple[int, ...]:
    """Five ports on this machine, from the usual base on."""
    for number in range(PORT_BASES_TRIED):
        base = FIRST_PORT + 100 * number
        ports = tuple(base + PORT_STEP * place for place in range(PORTS))
        if all(_is_free(port) for port in ports):
            return ports
    raise StageFailed("settling", "no free ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
