"""Putting the devnet's goods on its ledger: Datanets, contributions, indices, model versions.

Each step is a transaction of the person whose step it is. The copier and the junk contributor
come last, so that the ledger's order says who was first. What the ledger has already is not done
again, so an interrupted publishing goes on at the next start.
What this file does not know: how goods are trained, what they earn.
"""

import shutil
from collections.abc import Sequence
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
from node.devnet.children import Child, in_thread, patiently, read
from node.devnet.goods import Good, Goods
from node.devnet.market import Market
from node.devnet.people import People, Person
from node.ledger.addresses import account_text
from node.ledger.amounts import GRAINS_PER_OPEN
from node.ledger.parameters import MINUTE_MS, devnet_parameters
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
from node.training.publish import CONTENT_NAME, KIND_CONTENT, Release, prepare
from node.training.publish import Goods as Blob

OWN_WORK: Final = 8  # licence code of page 40 §7
ACCEPT: Final = 1
REVIEW_MS: Final = 30 * MINUTE_MS  # not the shortest: a steward may sit at a slow machine
WINDOW: Final = 4  # transactions of one sender in flight: the pool takes nonces up to + 4
STORE_S: Final = 60.0
RETURNED: Final = "returned"  # a contribution that nobody reviewed in time
CURATION_BPS: Final = 500  # of a contribution's pay, to its Datanet
LIST_MAX: Final = 100  # rows that a node tells at once; the devnet's own come first
ROYALTY_BPS: Final = 1_000
FUND_GRAINS: Final = 10 * GRAINS_PER_OPEN
PRICE_IN: Final = 20 * GRAINS_PER_OPEN  # per 10^6 tokens: page 40 §2, rank ≤ 8
PRICE_OUT: Final = 60 * GRAINS_PER_OPEN
PRICE_CALL: Final = 1_000_000


Numbered = Sequence[tuple[int, tuple[Record, ...]]]  # by contribution number


class Publisher:
    """Publishes through one node; `work` is a folder for what is built on the way."""

    def __init__(self, market: Market, child: Child, people: People, work: Path) -> None:
        self._market, self._child, self._people, self._work = market, child, people, work

    async def register_provider(self, node: Person) -> None:
        """Deposit and bond of a provider's node key."""
        told = await self._get(f"/ledger/accounts/{account_text(node.account)}")
        done = int(told["nonce"])  # a node's own key sends these two transactions and no other
        if done < 1:
            await self._market.do(node, RegisterProvider(node.account, node.account))
        if done < 2:
            bond = devnet_parameters()["provider_bond_min"]
            assert isinstance(bond, int)
            await self._market.do(node, Bond(1, node.account, bond))

    async def create_datanets(self, goods: Goods) -> dict[str, int]:
        """Name → number; open, quorum 1: the steward accepts."""
        stake = devnet_parameters()["stake_per_record_min"]
        there = await self._listed("datanets")
        for good in goods.goods:
            if good.name in there:
                continue
            charter = sha256(b"olnode demo: " + good.name.encode())
            terms = (charter, (OWN_WORK,), 0, 1, stake, CURATION_BPS, REVIEW_MS, 0)
            await self._market.do(self._people.steward, CreateDatanet(good.name.encode(), terms))
        there = await self._listed("datanets")
        return {good.name: there[good.name]["number"] for good in goods.goods}

    async def contribute(self, goods: Goods, numbers: dict[str, int]) -> None:
        """Every contributor gives to every Datanet, the honest ones first, then the others; the
        steward accepts all of it.

        Before anything is trained or built: that takes as long as the machine needs, and what is
        not reviewed in a minute is returned. Returned ones are given again.
        """
        given = {
            row["root"]
            for good in goods.goods
            for row in await self._contributions(numbers[good.name])
            if row["status"] != RETURNED
        }
        for members in (range(HONEST), range(HONEST, len(self._people.contributors))):
            sent = []
            for good in goods.goods:
                for member in members:
                    payload = _contribution(numbers[good.name], good.contributions[member])
                    if payload.root.hex() in given:
                        continue
                    who = self._people.contributors[member]
                    sent.append(await self._market.send(who, payload))
            for tx_id in sent:
                await self._market.settled(tx_id)
        for good in goods.goods:
            await self.accept_all(numbers[good.name])

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
        return {
            bytes.fromhex(row["root"]): row["number"] for row in found if row["status"] != RETURNED
        }

    async def publish(self, goods: Goods, good: Good, datanet: int) -> None:
        """Snapshot, index, model, gift to its fund, files and, last, the version of one Datanet."""
        model = (await self._listed("models")).get(good.name)
        if model is None or not model["version"]:
            await self.release(goods, good, datanet)

    async def release(self, goods: Goods, good: Good, datanet: int) -> None:
        """The next version of a Datanet's model, by `good`'s adapter."""
        by_root = await self.accept_all(datanet)
        numbered = sorted((by_root[contribution_root(r)], r) for r in good.contributions)
        root = snapshot_root([(number, contribution_root(r)) for number, r in numbered])
        snapshot = await self._snapshot(datanet, root, numbered)
        built = await trio.to_thread.run_sync(self._build_index, goods, good, numbered, root)
        number = await self._model(goods, good, datanet)
        release = Release(
            model=number,
            base_folder=goods.base,
            adapter=good.adapter,
            snapshot=snapshot,
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
            await self._store(Blob(KIND_CONTENT, sha256(raw), {CONTENT_NAME: raw}))
        await self._market.do(self._people.creator, prepared.payload)

    async def _snapshot(self, datanet: int, root: bytes, numbered: Numbered) -> int:
        """The number of the snapshot with that root, taken now if there is none."""
        found = await self._snapshots()
        if root not in found:
            count = sum(len(records) for _, records in numbered)
            last = numbered[-1][0]
            await self._market.do(self._people.steward, Snapshot(datanet, root, last, count))
            found = await self._snapshots()
        return found[root]

    async def _model(self, goods: Goods, good: Good, datanet: int) -> int:
        """The model's number, registered now if it is not; its fund gets a gift.

        The gift comes before the version: one that was interrupted between the two is given twice,
        which costs the creator little, and a version says that nothing is left to do.
        """
        creator, name = self._people.creator, good.name
        if name not in await self._listed("models"):
            payload = RegisterModel(
                name.encode(), base_hash(goods.base), OWN_WORK, datanet, ROYALTY_BPS
            )
            await self._market.do(creator, payload)
        number: int = (await self._listed("models"))[name]["number"]
        await self._market.do(creator, FundMaintenance(number, FUND_GRAINS))
        return number

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
        """Lay the files out in a folder, once, and let the node serve it, as often as asked."""
        folder = self._work / "goods" / f"{blob.kind}-{blob.identity.hex()}"
        await trio.to_thread.run_sync(_lay_out, folder, blob)
        body = {"kind": blob.kind, "identity": blob.identity.hex(), "folder": str(folder)}
        post = partial(self._child.node.post, "/goods", body)
        await patiently("storing goods", STORE_S, lambda: in_thread(post))

    async def _contributions(self, datanet: int) -> list[dict[str, Any]]:
        told = await self._get(f"/ledger/datanets/{datanet}/contributions?limit={LIST_MAX}")
        rows: list[dict[str, Any]] = told["contributions"]
        return rows

    async def _snapshots(self) -> dict[bytes, int]:
        """Root → number."""
        told = await self._get(f"/ledger/snapshots?limit={LIST_MAX}")
        return {bytes.fromhex(row["root"]): row["number"] for row in told["snapshots"]}

    async def _listed(self, what: str) -> dict[str, dict[str, Any]]:
        """Datanets or models by name."""
        told = await self._get(f"/ledger/{what}?limit={LIST_MAX}")
        return {row["name"]: row for row in told[what]}

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
    """Under another name first: a folder that is there is whole."""
    if folder.exists():
        return
    half = folder.with_name(folder.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    for name, content in blob.files.items():
        target = half / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copyfile(content, target)
    half.rename(folder)
