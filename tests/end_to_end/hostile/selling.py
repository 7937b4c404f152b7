"""A provider with an engine as its own `olnode start`, and a payer's node whose wallet asks it.

The engine is the product's own, in its process, over a base of a few thousand random weights: it
computes what it says, in no time.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from besieged import CREATOR, LEAVER, NODE, OPEN, PAYER, Besieged
from honest import Served

from consensus.primitives.digest import sha256
from node.devnet.children import Child
from node.home import make_home
from node.ledger.wire import transactions as wire
from node.peering.blobstore import BASE, CONTENT, BlobStore
from node.serving.adapters import base_hash
from node.serving.manifest import Manifest, encode_manifest
from node.web.ask import Node, Refusal, Unreachable

MODEL: Final = "plain"
OWN_WORK: Final = 8  # licence code of page 40 §7
PRICES: Final = (20 * OPEN, 60 * OPEN, 1_000_000)  # for 10^6 tokens in, out, and a call
TOKENS_MAX: Final = 8
ANSWER_S: Final = 10.0
READY_S: Final = 90.0  # engine and wallet, on a busy machine


def write_base(folder: Path) -> Path:
    """Llama 2 × h32 with random weights, over bytes."""
    pytest.importorskip("torch")
    from node.attribution.tokens import TextTokenizer
    from node.training.tiny_model import Recipe, random_model, write_tokenizer

    folder.mkdir()
    write_tokenizer(folder, [], merges=0)
    recipe = Recipe(hidden=32, inner=64, layers=2, heads=4, length=256, seed=3)
    random_model(recipe, len(TextTokenizer(folder))).save_pretrained(folder)
    return folder


class Shop(Besieged):
    """It decides blocks, and serves the one model that there is: a base, no adapter, no index."""

    foreseen = Besieged.foreseen | {"no peer keeps what is not settled"}  # it is alone

    def __init__(self, folder: Path) -> None:
        settings = {"engine.threads": 1, "engine.device": "cpu", "serving.models": [MODEL]}
        super().__init__(folder, ("validator", "provider"), settings)
        base = write_base(folder / "base")
        self._base = base_hash(base)
        manifest = Manifest(
            version=1, base=self._base, adapter=b"", early=b"", middle=b"", rank=0, targets=(),
            snapshot=b"", index_root=b"", probe=b"", dtype_class=0, gradient_dtype=0,
            max_model_len=256, thresholds=(), report=b"",
        )  # fmt: skip
        raw = encode_manifest(manifest)
        self._manifest = sha256(raw)
        content = folder / "content"
        content.write_bytes(raw)
        store = BlobStore(self.child.home / "blobs", 1 << 30)
        store.add_folder(BASE, self._base, base)
        store.add_folder(CONTENT, self._manifest, content)

    def publish(self) -> None:
        """Provider, model and version on the ledger, and a channel of who will leave."""
        self.found_provider(NODE)
        model = wire.RegisterModel(MODEL.encode(), self._base, OWN_WORK, 0, 0)
        version = wire.PublishVersion(1, b"", 0, b"", self._manifest, b"", *PRICES, ())
        self.settle(CREATOR, model, version)
        self.settle(LEAVER, wire.OpenChannel(NODE.key, LEAVER.key, 20 * OPEN, 0))

    def answers_signed(self) -> int:
        """Since its start, for whomever."""
        (model,) = self.child.node.get("/models")["models"]
        return int(model["requests"])


class Buyer:
    """The payer's node, from `start` on; its owner kills `child`."""

    def __init__(self, shop: Shop) -> None:
        home = shop.folder / "payer"
        chosen: dict[str, Any] = {
            "profile": "devnet", "name": "payer", "roles": ["payer"], "log.format": "json",
            "p2p.listen": ["/ip4/127.0.0.1/tcp/0"], "p2p.bootstrap": [shop.address],
            "engine.kind": "none",
        }  # fmt: skip
        raw = (shop.child.home / "genesis").read_bytes()
        make_home(home, genesis=raw, chosen=chosen, password=None, seeds={"spending": PAYER.seed})
        self.child = Child("payer", home, ("payer",))

    def start(self) -> None:
        """Until it has bought a first answer."""
        self.child.start()
        until_s = time.monotonic() + READY_S
        while not self.is_answered():
            if time.monotonic() > until_s or self.child.process.poll() is not None:
                pytest.fail(self.child.last_lines())
            time.sleep(0.2)

    def is_answered(self) -> bool:
        """Ask, pay, and have the receipt, all in time."""
        began_s = time.monotonic()
        body = {"model": MODEL, "prompt": "why?", "max_tokens": TOKENS_MAX}
        node = Node(self.child.node.path, timeout_s=ANSWER_S)
        with suppress(Unreachable, Refusal):
            lines: Iterator[dict[str, Any]] = node.stream("/infer", body)
            is_paid = any("receipt" in line for line in lines)
            return is_paid and time.monotonic() - began_s < ANSWER_S
        return False

    def work(self, seconds: float) -> Served:
        """One question after another for so long."""
        served, until_s = Served(), time.monotonic() + seconds
        while time.monotonic() < until_s:
            served.asked += 1
            served.answered += self.is_answered()
        return served
