"""Only plain LoRA folders are read, and their identity is what they hold."""

import json
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.serving import adapters
from node.serving.adapters import base_hash, read_adapter, write_adapter
from node.serving.engine import BadAdapter, Unsupported

MODULE = "model.layers.0.self_attn.q_proj"
A, B = f"base_model.model.{MODULE}.lora_A.weight", f"base_model.model.{MODULE}.lora_B.weight"


def safetensors(tensors: dict[str, Any], dtype: str = "F32") -> bytes:
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.asarray(array, "<f4").tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(np.shape(array)),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return packed(header, data)


def packed(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def good_tensors() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {A: rng.normal(size=(4, 6)), B: rng.normal(size=(5, 4))}


SETTINGS = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}


def make(folder: Path, settings: dict[str, Any] | None = None, raw: bytes | None = None) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | (settings or {})))
    weights = safetensors(good_tensors()) if raw is None else raw
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_adapter_is_read_with_rank_scale_and_targets(tmp_path: Path) -> None:
    file = read_adapter(make(tmp_path / "a"))
    assert (file.rank, file.bucket, file.targets) == (4, 8, ("q_proj",))
    assert file.modules == {MODULE: (4, 2.0)}
    a, b = file.pair(MODULE)
    assert (a.shape, b.shape) == ((4, 6), (5, 4))


def test_rslora_scales_by_the_root_of_the_rank(tmp_path: Path) -> None:
    assert read_adapter(make(tmp_path / "a", {"use_rslora": True})).modules[MODULE] == (4, 4.0)


def test_patterns_change_rank_and_scale(tmp_path: Path) -> None:
    settings = {"r": 8, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {MODULE: 2}}
    assert read_adapter(make(tmp_path / "a", settings)).modules[MODULE] == (4, 0.5)


@pytest.mark.ml
@pytest.mark.parametrize(
    "pattern",
    [
        {"q_proj": 2}, {"self_attn.q_proj": 2, "q_proj": 4}, {MODULE: 2}, {"v_proj": 2},
        {"proj": 2}, {"layers.0.self_attn.q_proj": 2}, {"attn.q_proj": 2}, {".": 2},
        {"layers_0.self_attn.q_proj": 2}, {"self_attn_q_proj": 2}, {"q_proj.": 2},
        {"selfxattn.q_proj": 2}, {"self.attn.q_proj": 2},
    ],
    ids=str,
)  # fmt: skip
def test_pattern_means_what_it_means_to_peft(tmp_path: Path, pattern: dict[str, int]) -> None:
    peft = pytest.importorskip("peft.utils.other")
    alpha = pattern.get(peft.get_pattern_key(pattern.keys(), MODULE), 8)
    file = read_adapter(make(tmp_path / "a", {"alpha_pattern": pattern}))
    assert file.modules[MODULE] == (4, alpha / 4)


def test_hash_ignores_bookkeeping_and_sees_one_bit(tmp_path: Path) -> None:
    plain = read_adapter(make(tmp_path / "a"))
    noted = {"base_model_name_or_path": "x", "target_modules": ["q_proj"], "inference_mode": True}
    assert read_adapter(make(tmp_path / "b", noted)).hash == plain.hash
    assert read_adapter(make(tmp_path / "c", {"lora_alpha": 9})).hash != plain.hash
    flipped = bytearray(plain.weights)
    flipped[-3] ^= 1
    assert read_adapter(make(tmp_path / "d", raw=bytes(flipped))).hash != plain.hash


def test_saved_again_it_keeps_its_hash(tmp_path: Path) -> None:
    file = read_adapter(make(tmp_path / "a"))
    written = write_adapter(tmp_path / "b", SETTINGS, file.weights)
    assert written == file.hash == read_adapter(tmp_path / "b").hash


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"invented_tomorrow": 1}, "invented_tomorrow"),
        ({"r": 0}, "r"),
        ({"r": 65}, "r"),
        ({"r": True}, "r"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": 99}}, "rank_pattern.q_proj"),
        ({"rank_pattern": {"": 4}}, "rank_pattern."),
        ({"alpha_pattern": {".*q_proj": 4}}, "alpha_pattern..*q_proj"),
        ({"alpha_pattern": {"(a+)+": 4}}, "alpha_pattern.(a+)+"),
        ({"alpha_pattern": {"q_proj|v_proj": 4}}, "alpha_pattern.q_proj|v_proj"),
        ({"r": 5}, A),
    ],
)
def test_other_mathematics_are_refused_by_key(
    tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    with pytest.raises(BadAdapter) as refusal:
        read_adapter(make(tmp_path / "a", settings))
    assert refusal.value.facts["key"] == key


def broken(desc: str) -> bytes:
    tensors = good_tensors()
    if desc == "nan":
        tensors[A][0, 0] = np.nan
    elif desc == "infinite":
        tensors[B][0, 0] = np.inf
    elif desc == "half of a pair":
        del tensors[B]
    elif desc == "unknown tensor":
        tensors["base_model.model.other.weight"] = np.zeros((1, 1))
    elif desc == "output layer":
        tensors = {name.replace(MODULE, "lm_head"): t for name, t in tensors.items()}
    elif desc == "three sides":
        tensors[A] = np.zeros((4, 6, 1))
    elif desc == "dtype":
        return safetensors(tensors, "I64")
    elif desc == "no tensors":
        tensors = {}
    raw = safetensors(tensors)
    if desc == "trailing":
        raw += b"\0"
    elif desc == "short":
        raw = raw[:-1]
    elif desc == "overlap":
        raw = raw.replace(b"[96, 176]", b"[92, 172]")
    elif desc == "twice":
        raw = packed({"x": 1}, b"").replace(b'{"x": 1}', b'{"x":1,"x":1}')
        raw = (13).to_bytes(8, "little") + raw[8:]
    elif desc == "long header":
        raw = (2**20 + 1).to_bytes(8, "little") + bytes(2**20 + 2)
    elif desc == "no header":
        raw = b"\x01"
    return raw


@pytest.mark.parametrize(
    "desc",
    [
        "nan", "infinite", "half of a pair", "unknown tensor", "output layer", "three sides",
        "dtype", "no tensors", "trailing", "short", "overlap", "twice", "long header", "no header",
    ],
)  # fmt: skip
def test_broken_tensor_files_are_refused(tmp_path: Path, desc: str) -> None:
    with pytest.raises(BadAdapter):
        read_adapter(make(tmp_path / "a", raw=broken(desc)))


@pytest.mark.parametrize("name", ["adapter_model.bin", "x.pt", "x.pth", "x.pkl"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "a")
    (folder / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(BadAdapter) as refusal:
        read_adapter(folder)
    assert refusal.value.facts["key"] == name


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    outside = tmp_path / "secret"
    shutil.move(folder / "adapter_model.safetensors", outside)
    (folder / "adapter_model.safetensors").symlink_to(outside)
    with pytest.raises(BadAdapter):
        read_adapter(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    folder = make(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(BadAdapter):
        read_adapter(folder)


def test_random_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    whole = safetensors(good_tensors())
    for _ in range(500):
        raw = bytearray(whole)
        for at in rng.integers(0, len(raw), 3):
            raw[at] = rng.integers(0, 256)
        try:
            adapters.parse_header(bytes(raw))
        except BadAdapter:
            continue


STRANGE = (None, True, -1, 1.5, 10**30, "", "x", "\ud800", [], [[]], ["x"], {}, {"x": []})


@pytest.mark.parametrize("value", STRANGE, ids=ascii)
def test_no_value_of_another_kind_raises_anything_else(tmp_path: Path, value: object) -> None:
    """A stranger's header and settings may hold any JSON."""
    raw = safetensors(good_tensors())
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    heads = [{**header, A: value}, {**header, ascii(value): header[B]}]
    heads += [{**header, A: {**header[A], field: value}} for field in header[A]]
    for number, head in enumerate(heads):
        with pytest.raises(BadAdapter):
            read_adapter(make(tmp_path / f"head{number}", raw=packed(head, data)))
    for key in (*SETTINGS, "rank_pattern", "alpha_pattern", "use_rslora", "bias", "of_tomorrow"):
        with suppress(BadAdapter):
            read_adapter(make(tmp_path / key, {key: value}))


def test_names_and_patterns_are_few_enough_to_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 64 KiB of patterns for thousands of modules took the reader an hour."""
    monkeypatch.setattr(adapters, "PAIRS_MAX", 4)
    some = {f"x{number}": 4 for number in range(4)}
    read_adapter(make(tmp_path / "four", {"rank_pattern": some}))
    with pytest.raises(BadAdapter, match="too many"):
        read_adapter(make(tmp_path / "five", {"rank_pattern": some, "alpha_pattern": {"y": 1}}))
    room = adapters.NAME_CHARS_MAX - len(A.replace(MODULE, ""))
    for length, is_read in ((room, True), (room + 1, False)):
        longer = {
            name.replace(MODULE, "m" * length): array for name, array in good_tensors().items()
        }
        folder = make(tmp_path / str(length), raw=safetensors(longer))
        with nullcontext() if is_read else pytest.raises(BadAdapter, match="too long"):
            read_adapter(folder)


def make_base(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("not part of it")
    return folder


def test_base_hash_is_of_its_files_alone(tmp_path: Path) -> None:
    one, two = make_base(tmp_path / "one"), make_base(tmp_path / "two")
    (two / "README.md").write_text("another")
    assert base_hash(one) == base_hash(two)
    (two / "model.safetensors").write_bytes(b"weightz")
    assert base_hash(one) != base_hash(two)


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin"])
def test_base_with_code_or_pickle_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_base(tmp_path / "base")
    (folder / name).write_bytes(b"")
    with pytest.raises(Unsupported):
        base_hash(folder)


def test_base_that_maps_to_code_is_refused(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    (folder / "config.json").write_text('{"auto_map": {}}')
    with pytest.raises(Unsupported):
        base_hash(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "\xff"])
def test_base_whose_settings_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    folder = make_base(tmp_path / "base")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Unsupported):
        base_hash(folder)
