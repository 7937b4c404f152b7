"""A model version's files without torch: base, adapters, index and manifest, and its ledger."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from attribution_kit import sound_rows, write_index

from consensus.primitives.digest import sha256
from node.ledger import tables
from node.ledger.rules.shares import Mix
from node.ledger.state import State
from node.ledger.wire.claims import GRADIENT_ONLY
from node.peering.blobstore import ADAPTER, BASE, CONTENT, INDEX, BlobStore
from node.serving.adapters import base_hash, write_adapter
from node.serving.manifest import Manifest, encode_manifest
from node.training.tiny_model import write_tokenizer

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
NAME = "model-1"  # as ledger_kit's model 1 is called


@dataclass(frozen=True, slots=True)
class Shelf:
    """Folders and identities of one version; `manifest_raw` lies in a folder as `content`."""

    folders: dict[tuple[int, bytes], Path]
    manifest: Manifest

    @property
    def manifest_raw(self) -> bytes:
        return encode_manifest(self.manifest)

    def store_in(self, store: BlobStore) -> None:
        """Let a node serve all of it."""
        for (kind, identity), folder in self.folders.items():
            store.add_folder(kind, identity, folder)


def make_base(folder: Path) -> tuple[bytes, Path]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    return base_hash(folder), folder


def make_adapter(folder: Path, seed: int) -> tuple[bytes, Path]:
    """A rank 2 pair on one module."""
    pair = np.random.default_rng(seed).normal(size=(2, 2, 4)).astype("<f4")
    header = {
        f"{MODULE}.lora_A.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        f"{MODULE}.lora_B.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [32, 64]},
    }
    text = json.dumps(header).encode()
    raw = len(text).to_bytes(8, "little") + text + pair.tobytes()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write_adapter(folder, {"r": 2, "lora_alpha": 4}, raw), folder


def make_shelf(
    root: Path,
    seed: int = 1,
    mix: Mix = GRADIENT_ONLY,
    bare: bool = True,
    inflated: int | None = None,
) -> Shelf:
    """Of a base that is `bare`, or has a tokenizer of bytes beside its weights; `inflated`: the row
    of the index that no honest builder makes."""
    base, base_folder = make_base(root / "base")
    if not bare:
        write_tokenizer(base_folder, [], merges=0)
        base = base_hash(base_folder)
    adapters = [make_adapter(root / f"adapter-{i}", 10 * seed + i) for i in range(3)]
    rows = sound_rows(8, seed)
    if inflated is not None:
        rows[inflated] = 127
    index_folder, index_root = write_index(root / "index", rows, plain=mix)
    (adapter, _), (early, _), (middle, _) = adapters
    manifest = Manifest(
        version=1, base=base, adapter=adapter, early=early, middle=middle, rank=2,
        targets=(b"q_proj",), snapshot=b"\3" * 32, index_root=index_root, probe=b"",
        dtype_class=0, gradient_dtype=0, max_model_len=256, thresholds=(), report=b"",
    )  # fmt: skip
    folders = {(ADAPTER, identity): folder for identity, folder in adapters}
    folders |= {(BASE, base): base_folder, (INDEX, index_root): index_folder}
    shelf = Shelf(folders, manifest)
    return with_manifest(root, shelf, manifest)


def with_manifest(root: Path, shelf: Shelf, manifest: Manifest) -> Shelf:
    """The same goods under another manifest, which is content as well."""
    raw = encode_manifest(manifest)
    folder = root / f"manifest-{sha256(raw).hex()[:8]}"
    folder.mkdir()
    (folder / "content").write_bytes(raw)
    goods = {key: path for key, path in shelf.folders.items() if key[0] != CONTENT}
    return Shelf(goods | {(CONTENT, sha256(raw)): folder}, manifest)


def put_version(state: State, shelf: Shelf, version: int = 1) -> None:
    """Make it the current version of model 1, as a `PublishVersion` would."""
    model = state.get(tables.MODEL, 1)
    state.put(tables.MODEL, (1,), model._replace(base=shelf.manifest.base, current=version))
    record = state.get(tables.VERSION, 1, 1)._replace(
        adapter=shelf.manifest.adapter,
        index_root=shelf.manifest.index_root,
        manifest=sha256(shelf.manifest_raw),
    )
    state.put(tables.VERSION, (1, version), record)
    state.put(tables.PRICE, (1, version), state.get(tables.PRICE, 1, 1))
    state.put(tables.MODEL_NAME, (NAME.encode(),), tables.Number(1))
