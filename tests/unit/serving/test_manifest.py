"""A manifest has one encoding, and says nothing that contradicts itself."""

import pytest

from consensus.primitives.errors import Invalid
from node.serving.manifest import Manifest, decode_manifest, encode_manifest

GOOD = Manifest(
    version=1,
    base=b"b" * 32,
    adapter=b"a" * 32,
    early=b"e" * 32,
    middle=b"m" * 32,
    rank=8,
    targets=(b"q_proj", b"v_proj"),
    snapshot=b"s" * 32,
    index_root=b"i" * 32,
    probe=b"",
    dtype_class=0,
    gradient_dtype=0,
    max_model_len=512,
    thresholds=((0, 1_000, 10_000, 100, 1_000, 100, 1_000),),
    report=b"",
)
BASE_ALONE = GOOD._replace(
    adapter=b"", early=b"", middle=b"", rank=0, targets=(), index_root=b"", snapshot=b""
)


@pytest.mark.parametrize("manifest", [GOOD, BASE_ALONE, GOOD._replace(rank=64)])
def test_manifest_comes_back_whole(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 2}, "manifest.version"),
        ({"dtype_class": 2}, "manifest.dtype"),
        ({"gradient_dtype": 2}, "manifest.dtype"),
        ({"rank": 0}, "manifest.rank"),
        ({"rank": 65}, "manifest.rank"),
        ({"targets": ()}, "manifest.targets"),
        ({"targets": (b"v_proj", b"q_proj")}, "manifest.targets"),
        ({"early": b""}, "manifest.checkpoints"),
        ({"early": b"", "middle": b""}, "manifest.checkpoints"),
        ({"max_model_len": 0}, "manifest.length"),
        ({"base": b"short"}, "manifest.malformed"),
        ({"report": b"x" * 5_000}, "manifest.too_large"),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(change: dict[str, object], code: str) -> None:
    with pytest.raises(Invalid) as refusal:
        decode_manifest(encode_manifest(GOOD._replace(**change)))
    assert refusal.value.code == code
