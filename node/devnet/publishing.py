"""Putting the devnet's goods on its ledger: Datanets, contributions, indices, model versions.

Each step is a transaction of the person whose step it is. The copier and the junk contributor
come last, so that the ledger's order says who was first.
What this file does not know: how goods are trained, what they earn.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from consensus.primitives.digest import sha256
from node.attribution.building import Built, IndexSpec, build_index
from node.attribution.datanets import (
    Record,
    content_hash,
    contribution_root,
    encode_records,
    place_records,
    snapshot_root,
)
from node.attribution.runners import LocalRunner
from node.attribution.tokens import TextTokenizer
from node.devnet.children import Child, patiently, read
from node.devnet.goods import Good, Goods
from node.devnet.market import Market
from node.devnet.people import People, Person
from node.ledger.amounts import GRAINS_PER_OPEN
from node.ledger.parameters import devnet_parameters
from node.ledger.wire.transactions import (
    Bond,
    Contribute,
    CreateDatanet,
    Curate,
    FundMaintenance,
    RegisterModel,
    RegisterProvider,
    Snapshot,
)
from node.serving.adapters import base_hash
from node.training.demo_world import HONEST
from node.training.finetune import EARLY, MIDDLE
from node.training.publish import Goods as Blob
from node.training.publish import Release, prepare

OWN_WORK: Final = 8  # licence code of page 40 §7
ACCEPT: Final = 1
WINDOW: Final = 4  # transactions of one sender in flight: the pool takes nonces up to + 4
STORE_S: Final = 60.0
CURATION_BPS: Final = 500  # of a contribution's pay, to its Datanet
FUND_GRAINS: Final = 10 * GRAINS_PER_OPEN
PRICE_IN: Final = 20 * GRAINS_PER_OPEN  # per 10^6 tokens: page 40 §2, rank ≤ 8
PRICE_OUT: Final = 60 * GRAINS_PER_OPEN
PRICE_CALL: Final = 1_000_000


Numbered = Sequence[tuple[int, tuple[Record, ...]]]  # by contribution number


@dataclass(frozen=True, slots=True)
class Published:
    """A model version on the ledger; `records` by contribution number."""

    good: Good
    model: int
    index_folder: Path
    index_root: bytes
    records: dict[int, tuple[Record, ...]]


class Publisher:
    """Publishes through one node; `work` is a folder for what is built on the way."""

    def __init__(self, market: Market, child: Child, people: People, work: Path) -> None:
        self._market, self._child, self._people, self._work = market, child, people, work

    async def register_provider(self, node: Person) -> None:
        """Deposit and bond of a provider's node key."""
        await self._market.do(node, RegisterProvider(node.account, node.account))
        bond = devnet_parameters()["provider_bond_min"]
        assert isinstance(bond, int)
        await self._market.do(node, Bond(1, node.account, bond))

    async def create_datanets(self, goods: Goods) -> dict[str, int]:
        """Name → number; open, quorum 1: the steward accepts."""
        stake = devnet_parameters()["stake_per_record_min"]
        review = devnet_parameters()["review_ms_min"]
        for good in goods.goods:
            charter = sha256(b"olnode demo: " + good.name.encode())
            terms = (charter, (OWN_WORK,), 0, 1, stake, CURATION_BPS, review, 0)
            await self._market.do(self._people.steward, CreateDatanet(good.name.encode(), terms))
        listed = await self._get("/ledger/datanets")
        return {row["name"]: row["number"] for row in listed["datanets"]}

    async def contribute(self, goods: Goods, numbers: dict[str, int]) -> None:
        """Every contributor gives to every Datanet; the honest ones first, then the others."""
        for members in (range(HONEST), range(HONEST, len(self._people.contributors))):
            sent = []
            for good in goods.goods:
                for member in members:
                    payload = _contribution(numbers[good.name], good.contributions[member])
                    who = self._people.contributors[member]
                    sent.append(await self._market.send(who, payload))
            for tx_id in sent:
                await self._market.settled(tx_id)

    async def accept_all(self, datanet: int) -> dict[bytes, int]:
        """The steward accepts what waits; contributor → contribution number."""
        found = await self._contributions(datanet)
        waiting = [row["number"] for row in found if row["status"] == "pending"]
        for at in range(0, len(waiting), WINDOW):
            part = waiting[at : at + WINDOW]
            reason = bytes(32)
            steward = self._people.steward
            sent = [await self._market.send(steward, Curate(n, ACCEPT, reason)) for n in part]
            for tx_id in sent:
                await self._market.settled(tx_id)
        by_root = {bytes.fromhex(row["root"]): row["number"] for row in found}
        return by_root

    async def publish(self, goods: Goods, good: Good, datanet: int) -> Published:
        """Snapshot, index, model and version of one Datanet; its fund gets a gift."""
        by_root = await self.accept_all(datanet)
        numbered = sorted((by_root[contribution_root(r)], r) for r in good.contributions)
        root = snapshot_root([(number, contribution_root(r)) for number, r in numbered])
        count = sum(len(records) for _, records in numbered)
        last = numbered[-1][0]
        steward, creator = self._people.steward, self._people.creator
        await self._market.do(steward, Snapshot(datanet, root, last, count))
        built = await trio.to_thread.run_sync(self._build_index, goods, good, numbered, root)
        await self._market.do(
            creator,
            RegisterModel(good.name.encode(), base_hash(goods.base), OWN_WORK, datanet, 1_000),
        )
        listed = await self._get("/ledger/models")
        model = next(row["number"] for row in listed["models"] if row["name"] == good.name)
        release = Release(
            model=model,
            base_folder=goods.base,
            adapter=good.adapter,
            snapshot=datanet,  # one snapshot a Datanet, made in the Datanets' order
            index_folder=built.folder,
            index_root=built.root,
            p_in=PRICE_IN,
            p_out=PRICE_OUT,
            p_call=PRICE_CALL,
        )
        prepared = await trio.to_thread.run_sync(prepare, release)
        for blob in prepared.goods:
            await self._store(blob)
        for _, records in numbered:
            raw = encode_records(records)
            await self._store(Blob(5, sha256(raw), {"content": raw}))
        await self._market.do(creator, prepared.payload)
        await self._market.do(creator, FundMaintenance(model, FUND_GRAINS))
        return Published(good, model, built.folder, built.root, dict(numbered))

    def _build_index(
        self,
        goods: Goods,
        good: Good,
        numbered: Sequence[tuple[int, tuple[Record, ...]]],
        root: bytes,
    ) -> Built:
        adapter = good.adapter
        spec = IndexSpec(
            base_folder=str(goods.base),
            early_folder=adapter.folder_of(EARLY),
            middle_folder=adapter.folder_of(MIDDLE),
            base=base_hash(goods.base),
            adapter=adapter.final,
            early=adapter.early,
            middle=adapter.middle,
            snapshot_root=root,
        )
        home = self._work / "indexes"
        home.mkdir(parents=True, exist_ok=True)
        return build_index(
            spec, place_records(numbered), TextTokenizer(goods.base), home, LocalRunner(1)
        )

    async def _store(self, blob: Blob) -> None:
        """Lay the files out in a folder and let the node serve it."""
        folder = self._work / "goods" / f"{blob.kind}-{blob.identity.hex()}"
        if folder.exists():
            return
        await trio.to_thread.run_sync(_lay_out, folder, blob)
        body = {"kind": blob.kind, "identity": blob.identity.hex(), "folder": str(folder)}
        post = partial(self._child.node.post, "/goods", body)
        await patiently("storing goods", STORE_S, lambda: trio.to_thread.run_sync(post))

    async def _contributions(self, datanet: int) -> list[dict[str, Any]]:
        told = await self._get(f"/ledger/datanets/{datanet}/contributions?limit=100")
        rows: list[dict[str, Any]] = told["contributions"]
        return rows

    async def _get(self, route: str) -> dict[str, Any]:
        return await read(self._child, route)


def _contribution(datanet: int, records: tuple[Record, ...]) -> Contribute:
    size = len(encode_records(records))
    return Contribute(
        datanet,
        0,
        contribution_root(records),
        content_hash(records),
        len(records),
        size,
        OWN_WORK,
        0,
        b"",
    )


def _lay_out(folder: Path, blob: Blob) -> None:
    folder.mkdir(parents=True)
    for name, content in blob.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copyfile(content, target)
