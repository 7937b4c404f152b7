"""A second version is published while real daemons run: it is served, told of and measured.

Five `olnode start` processes as a devnet's, the first of them the only provider, a third the node
that the creator publishes through. The goods are tiny: what they answer is not looked at.
"""

import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from release_kit import QUICK, TINY

from node.attribution.datanets import Record, make_record
from node.devnet.children import Child, in_thread, patiently, read, stop_all, wait_answering
from node.devnet.goods import Good, Goods
from node.devnet.market import Market
from node.devnet.people import node_of, settle, spender_of
from node.devnet.ports import free_ports
from node.devnet.publishing import Publisher
from node.ledger.amounts import GRAINS_PER_OPEN
from node.ledger.genesis import decode_genesis
from node.ledger.wire.transactions import Transfer
from node.training.demo_world import CONTRIBUTORS
from node.training.finetune import finetune
from node.training.tiny_model import make_base
from node.web.ask import Unreachable

pytestmark = [pytest.mark.ml, pytest.mark.slow]

NAME = "facts"
FIRST_TOKENS = "olnode_inference_time_to_first_token_seconds_count"
ALL_S = 300.0
ASK_S = 90.0
QUESTION = {"model": NAME, "prompt": "What is thing 3?", "max_tokens": 8}


def make_goods(home: Path) -> list[Goods]:
    """The same base and data twice, with an adapter of another seed each time."""
    pytest.importorskip("torch").set_num_threads(1)
    base = make_base(home / "cache", TINY)
    given: list[tuple[Record, ...]] = [
        (make_record(f"What is thing {n}?", f"Thing {n} is {n * 7}."),) for n in range(CONTRIBUTORS)
    ]
    records = [record for mine in given for record in mine]
    nothing: Any = None
    made = []
    for seed in (1, 2):
        adapter = finetune(base, records, replace(QUICK, seed=seed), home / f"adapter-{seed}")
        made.append(Goods(base, (Good(NAME, nothing, tuple(given), adapter),)))
    return made


def ask(payer: Child) -> dict[str, Any]:
    """A question that is paid for; its receipt. Unreachable while nobody serves."""
    receipt: dict[str, Any] = {}
    for line in payer.node.stream("/infer", QUESTION):
        receipt = line.get("receipt", receipt)
    if not receipt:
        raise Unreachable(payer.node.path, "no receipt")
    return receipt


async def answered(payer: Child, version: int) -> dict[str, Any]:
    """The receipt of the first answer by that version; others may come before."""
    with trio.fail_after(ASK_S):
        while True:
            receipt = await patiently("answer", ASK_S, lambda: in_thread(partial(ask, payer)))
            if receipt["version"] == version:
                return receipt


def model_list(child: Child) -> dict[str, dict[str, Any]]:
    """`olnode model list` as an operator types it; rows by label."""
    program = [sys.executable, "-P", "-c", "from node.cli.main import main; main()"]
    command = [*program, "--home", str(child.home), "-o", "json", "model", "list"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return {row["model"]: row for row in json.loads(ran.stdout)["models"]}


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    told = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in told}


async def scraped(port: int, name: str, least: int) -> dict[str, float]:
    """Once `name` is at least that: the engine tells its figures each half second."""
    while True:
        seen = await trio.to_thread.run_sync(scrape, port)
        if seen[name] >= least:
            return seen
        await trio.sleep(0.2)


async def test_second_version_is_sold_without_a_restart(tmp_path: Path, monkeypatch) -> None:
    first, second = make_goods(tmp_path / "goods")
    ports = free_ports()
    land = settle(
        tmp_path / "land", time_ms=time.time_ns() // 1_000_000, ports=ports, models=(NAME,)
    )
    provider, other, creator = land.validators[:3]
    metrics_port = ports[-1] + 1
    try:
        monkeypatch.setenv("OLNODE_METRICS__LISTEN", f"127.0.0.1:{metrics_port}")
        provider.start()
        monkeypatch.delenv("OLNODE_METRICS__LISTEN")
        monkeypatch.setenv("OLNODE_ROLES", '["validator"]')
        other.start()
        monkeypatch.delenv("OLNODE_ROLES")
        for child in land.children[2:]:
            child.start()
        with trio.fail_after(ALL_S):
            for child in land.children:
                await wait_answering(child)
            market = Market(creator, decode_genesis(land.genesis).chain_id)
            publisher = Publisher(market, creator, land.people, tmp_path / "creator")
            await publisher.register_provider(node_of(provider))
            datanets = await publisher.create_datanets(first)
            await publisher.contribute(first, datanets)
            await publisher.publish(first, first.goods[0], datanets[NAME])
            gift = Transfer(spender_of(land.payer), 100 * GRAINS_PER_OPEN, b"to ask with")
            await market.do(land.people.faucet, gift)
            await answered(land.payer, 1)

            began = await read(provider, "/status")
            await publisher.release(second, second.goods[0], datanets[NAME])
            receipt = await answered(land.payer, 2)
            rows = await trio.to_thread.run_sync(model_list, provider)
            seen = await scraped(metrics_port, FIRST_TOKENS, 2)
        assert began["models"] == [f"{NAME}@1"]
        assert provider.process is not None
        assert provider.process.poll() is None
    finally:
        await stop_all(list(land.children))
    row = rows[f"{NAME}@2"]
    assert (row["ready"], row["adapter"]) == (True, second.goods[0].adapter.final.hex())
    assert row["tier"] == "slot"
    assert row["requests"] >= 1
    assert int(row["fees"]) >= int(receipt["fee"]) > 0
    assert 0 < int(row["earned"]) < int(row["fees"])
    assert rows[f"{NAME}@1"]["requests"] >= 1
    assert seen["olnode_inference_engine_up"] == 1
    assert seen["olnode_inference_engine_restarts_total"] == 0
    assert seen["olnode_inference_receipt_delay_seconds_count"] >= 2
    assert seen["olnode_adapter_registered"] >= 6, "two versions with two checkpoints each"
    assert seen["olnode_adapter_disk_bytes"] > 0
    assert seen['olnode_events_total{event="served",part="service"}'] >= 2
    assert list((provider.home / "packed").glob("*.packed"))
