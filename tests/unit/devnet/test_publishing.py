"""Putting goods on the ledger: who sends what, in which order, and which files are served."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import trio

from consensus.primitives.digest import sha256
from node.attribution.datanets import (
    Record,
    content_hash,
    contribution_root,
    encode_records,
    make_record,
    snapshot_root,
)
from node.devnet import publishing
from node.devnet.goods import Good, Goods
from node.devnet.people import Person, new_people
from node.devnet.publishing import WINDOW, Publisher
from node.ledger.addresses import account_of
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
from node.training.demo_world import CONTRIBUTORS, HONEST
from node.training.publish import Goods as Blob

NAMES = ("contracts", "cooking")
NODE = Person("node", b"\1" * 32)


def records(name: str, member: int) -> tuple[Record, ...]:
    return (make_record(f"{name} {member}?", "yes"), make_record("", f"{name} {member}"))


def good(name: str, folder: Path) -> Good:
    given = tuple(records(name, member) for member in range(CONTRIBUTORS))
    nothing: Any = None
    return Good(name, nothing, given, nothing)


class Interrupted(Exception):
    """Ctrl-C, at a point that a test chooses."""


class Version(NamedTuple):
    """What `prepare` makes of a release here."""

    model: int


class Ledger:
    """Market and node in one: takes transactions, tells what became of them."""

    def __init__(self) -> None:
        self.sent: list[tuple[Person, Any]] = []
        self.in_flight: set[str] = set()
        self.most_in_flight: dict[str, int] = {}
        self.contributions: list[dict[str, Any]] = []
        self.rows: dict[str, list[dict[str, Any]]] = {"datanets": [], "models": [], "snapshots": []}
        self.stops_at: int | None = None  # the devnet is interrupted before this transaction
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.node = self  # as a child's

    async def send(self, who: Person, payload: Any) -> str:
        await trio.lowlevel.checkpoint()
        if len(self.sent) == self.stops_at:
            raise Interrupted
        self.sent.append((who, payload))
        tx_id = f"{who.name}-{len(self.sent)}"
        self.in_flight.add(tx_id)
        mine = sum(one.startswith(who.name + "-") for one in self.in_flight)
        self.most_in_flight[who.name] = max(mine, self.most_in_flight.get(who.name, 0))
        if isinstance(payload, Contribute):
            row = {"number": len(self.contributions) + 1, "root": payload.root.hex(),
                   "status": "pending", "datanet": payload.datanet}  # fmt: skip
            self.contributions.append(row)
        self._settle(payload)
        return tx_id

    def _settle(self, payload: Any) -> None:
        match payload:
            case CreateDatanet() | RegisterModel():
                self._add(
                    "datanets" if isinstance(payload, CreateDatanet) else "models",
                    name=payload.name.decode(), version=0,
                )  # fmt: skip
            case Snapshot():
                self._add("snapshots", root=payload.root.hex())
            case Curate():
                self.contributions[payload.contribution - 1]["status"] = "accepted"
            case Version(model):
                self.rows["models"][model - 1]["version"] = 1

    def _add(self, what: str, **row: Any) -> None:
        self.rows[what].append({"number": len(self.rows[what]) + 1, **row})

    async def settled(self, tx_id: str) -> int:
        await trio.lowlevel.checkpoint()
        self.in_flight.remove(tx_id)
        return 1

    async def do(self, who: Person, payload: Any) -> int:
        return await self.settled(await self.send(who, payload))

    def get(self, route: str) -> dict[str, Any]:
        what = route.split("/")[2].partition("?")[0]
        if what == "accounts":
            account = account_of(route.rpartition("/")[2])
            return {"nonce": sum(who.account == account for who, _ in self.sent)}
        if what in self.rows and "contributions" not in route:
            return {what: self.rows[what]}
        datanet = int(route.split("/")[3])
        return {"contributions": [r for r in self.contributions if r["datanet"] == datanet]}

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        self.posted.append((route, body))
        return {}

    def payloads(self, kind: type) -> list[Any]:
        return [payload for _, payload in self.sent if isinstance(payload, kind)]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def publisher(ledger: Ledger, tmp_path: Path) -> Publisher:
    there: Any = ledger
    return Publisher(there, there, new_people(), tmp_path / "work")


@pytest.fixture
def goods(tmp_path: Path) -> Goods:
    return Goods(tmp_path / "base", tuple(good(name, tmp_path) for name in NAMES))


INDEX_ROOT = b"\7" * 32


def prepared_here(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No index is built and nothing is trained; what the two would have been given."""
    seen: list[Any] = []

    def build(goods: Goods, good: Good, numbered: Any, root: bytes) -> Any:
        seen.append((numbered, root))
        return SimpleNamespace(folder=Path("index"), root=INDEX_ROOT)

    def prepare(release: Any) -> Any:
        seen.append(release)
        manifest = Blob(5, bytes([release.model]) * 32, {"content": b"manifest"})
        return SimpleNamespace(goods=(manifest,), payload=Version(release.model))

    publisher._build_index = build
    monkeypatch.setattr(publishing, "prepare", prepare)
    monkeypatch.setattr(publishing, "base_hash", lambda folder: b"\6" * 32)
    return seen


async def publish_all(publisher: Publisher, goods: Goods) -> None:
    await publisher.register_provider(NODE)
    numbers = await publisher.create_datanets(goods)
    await publisher.contribute(goods, numbers)
    for one in goods.goods:
        await publisher.publish(goods, one, numbers[one.name])


STEPS = 2 + 2 + 2 * CONTRIBUTORS + 2 * (CONTRIBUTORS + 4)  # provider, Datanets, gifts, the rest


@pytest.mark.parametrize("stops_at", range(STEPS))
async def test_publishing_that_was_interrupted_goes_on_where_it_was(
    publisher: Publisher, ledger: Ledger, goods: Goods, monkeypatch: pytest.MonkeyPatch,
    stops_at: int,
) -> None:  # fmt: skip
    """At every transaction; nothing is sent twice but a gift, whose fund cannot tell of it."""
    prepared_here(publisher, monkeypatch)
    ledger.stops_at = stops_at
    with pytest.raises(Interrupted):
        await publish_all(publisher, goods)
    ledger.stops_at, ledger.posted = None, []
    await publish_all(publisher, goods)
    once = [payload for _, payload in ledger.sent if not isinstance(payload, FundMaintenance)]
    assert len(once) == len(set(once)) == STEPS - 2
    assert len(ledger.payloads(FundMaintenance)) in (2, 3)
    last = ledger.sent[-1][1]
    offered = {body["identity"] for _, body in ledger.posted}
    assert (bytes([last.model]) * 32).hex() in offered, "a version whose files nobody offers"
    sent = len(ledger.sent)
    await publish_all(publisher, goods)
    assert len(ledger.sent) == sent, "all is there"


async def test_provider_registers_before_it_bonds_what_the_ledger_asks(
    publisher: Publisher, ledger: Ledger
) -> None:
    await publisher.register_provider(NODE)
    bond = devnet_parameters()["provider_bond_min"]
    assert ledger.sent == [
        (NODE, RegisterProvider(NODE.account, NODE.account)),
        (NODE, Bond(1, NODE.account, bond)),
    ]


async def test_steward_creates_each_datanet(
    publisher: Publisher, ledger: Ledger, goods: Goods
) -> None:
    assert await publisher.create_datanets(goods) == {"contracts": 1, "cooking": 2}
    assert {who.name for who, _ in ledger.sent} == {"steward"}
    assert [p.name for p in ledger.payloads(CreateDatanet)] == [b"contracts", b"cooking"]


async def test_copier_and_junk_come_after_all_honest_ones_have_settled(
    publisher: Publisher, ledger: Ledger, goods: Goods
) -> None:
    """The ledger's order says who was first: a copy that came first would be the original."""
    await publisher.contribute(goods, {"contracts": 1, "cooking": 2})
    assert ledger.in_flight == set()
    sent = [(who, payload) for who, payload in ledger.sent if isinstance(payload, Contribute)]
    names = [who.name for who, _ in sent]
    late = 2 * (CONTRIBUTORS - HONEST)
    assert set(names[-late:]) == {"copier", "junk"}
    assert not {"copier", "junk"} & set(names[:-late])
    for who, payload in sent:
        member = publisher._people.contributors.index(who)
        given = records(NAMES[payload.datanet - 1], member)
        assert payload.root == contribution_root(given)
        assert (payload.content_hash, payload.records) == (content_hash(given), 2)


async def test_steward_accepts_what_waits_a_window_at_a_time(
    publisher: Publisher, ledger: Ledger, goods: Goods
) -> None:
    """The pool takes so many nonces of one sender and no more."""
    await publisher.contribute(goods, {"contracts": 1, "cooking": 2})
    mine = [row for row in ledger.contributions if row["datanet"] == 1]
    for row in mine[1:]:
        row["status"] = "pending"
    before = len(ledger.sent)
    by_root = await publisher.accept_all(1)
    accepted = [payload.contribution for _, payload in ledger.sent[before:]]
    assert accepted == [row["number"] for row in mine[1:]]
    assert by_root == {bytes.fromhex(row["root"]): row["number"] for row in mine}
    assert ledger.most_in_flight["steward"] == WINDOW


async def test_all_is_accepted_before_anything_is_built(
    publisher: Publisher, ledger: Ledger, goods: Goods
) -> None:
    """A review ends after a minute; on a slow machine the last Datanet's were returned."""
    await publisher.contribute(goods, {"contracts": 1, "cooking": 2})
    assert {row["status"] for row in ledger.contributions} == {"accepted"}


async def test_what_was_returned_is_given_again(
    publisher: Publisher, ledger: Ledger, goods: Goods, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publisher.contribute(goods, {"contracts": 1, "cooking": 2})
    for row in ledger.contributions[::2]:
        row["status"] = "returned"
    before = len(ledger.contributions)
    await publisher.contribute(goods, {"contracts": 1, "cooking": 2})
    again = ledger.contributions[before:]
    assert {row["root"] for row in again} == {
        row["root"] for row in ledger.contributions[:before:2]
    }
    by_root = await publisher.accept_all(1)
    taken = {row["number"] for row in ledger.contributions if row["status"] == "accepted"}
    assert set(by_root.values()) <= taken
    assert len(by_root) == CONTRIBUTORS


async def test_version_is_published_over_the_snapshot_of_what_was_accepted(
    publisher: Publisher, ledger: Ledger, goods: Goods, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publisher.contribute(goods, {"contracts": 1, "cooking": 2})
    seen = prepared_here(publisher, monkeypatch)
    await publisher.publish(goods, goods.goods[0], 1)
    (numbered, root), release = seen
    assert [number for number, _ in numbered] == [
        row["number"] for row in ledger.contributions if row["datanet"] == 1
    ]
    assert root == snapshot_root([(n, contribution_root(given)) for n, given in numbered])
    (snapshot,) = ledger.payloads(Snapshot)
    assert snapshot == Snapshot(1, root, numbered[-1][0], 2 * CONTRIBUTORS)
    assert (release.model, release.index_root, release.snapshot) == (1, INDEX_ROOT, 1)
    senders = [(who.name, type(p)) for who, p in ledger.sent if not isinstance(p, Contribute)]
    assert senders[-4:] == [
        ("steward", Snapshot),
        ("creator", RegisterModel),
        ("creator", FundMaintenance),
        ("creator", Version),
    ]
    served = {body["identity"]: body for _, body in ledger.posted}
    assert len(served) == 1 + CONTRIBUTORS
    for _, given in numbered:  # who holds the records can show why they earned
        raw = encode_records(given)
        folder = Path(served[sha256(raw).hex()]["folder"])
        assert (folder / "content").read_bytes() == raw


async def test_file_that_lies_there_is_offered_again(
    publisher: Publisher, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first offer may not have reached the node, and half a folder is no folder."""
    blob = Blob(1, b"\1" * 32, {"sub/a": b"bytes"})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", None)  # interrupted before it was whole
        with pytest.raises(TypeError):
            await publisher._store(blob)
    assert ledger.posted == []
    await publisher._store(blob)
    await publisher._store(blob)
    first, second = ledger.posted
    assert first == second
    folder = Path(first[1]["folder"])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "sub" / "a").read_bytes() == b"bytes"


async def test_files_are_copied_where_they_lie_in_a_folder(
    publisher: Publisher, ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"w")
    await publisher._store(Blob(2, b"\2" * 32, {"model.safetensors": tmp_path / "weights"}))
    folder = Path(ledger.posted[0][1]["folder"])
    assert (folder / "model.safetensors").read_bytes() == b"w"
