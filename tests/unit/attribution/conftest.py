"""A random base and two checkpoints of one adapter, made once a session, for the float part."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from node.attribution.building import Built, IndexSpec, build_index
from node.attribution.datanets import PlacedRecord, make_record, place_records
from node.attribution.runners import LocalRunner


@dataclass(frozen=True)
class Trained:
    """What an index is built of: folders of a base and of an early and a middle checkpoint."""

    base: Path
    early: Path
    middle: Path

    def spec(self, **fields: object) -> IndexSpec:
        plain = {
            "base_folder": str(self.base),
            "early_folder": str(self.early),
            "middle_folder": str(self.middle),
            "base": b"\1" * 32,
            "adapter": b"\2" * 32,
            "early": b"\3" * 32,
            "middle": b"\4" * 32,
            "snapshot_root": b"\5" * 32,
        }
        return IndexSpec(**{**plain, **fields})


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Llama 1 × h32 over bytes with random weights; adapters of rank 4 on every linear layer."""
    import torch
    from safetensors.torch import save

    from node.attribution.tokens import TextTokenizer
    from node.serving.adapters import write_adapter
    from node.training.tiny_model import Recipe, random_model, write_tokenizer

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained")
    write_tokenizer(root, [], merges=0)
    recipe = Recipe(hidden=32, inner=48, layers=1, heads=2, length=256, seed=3)
    model = random_model(recipe, len(TextTokenizer(root)))
    with torch.no_grad():  # as it starts, a base says much the same of every record
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.dim() == 2 else 1.0)
    model.save_pretrained(root)
    folders = []
    for seed, name in enumerate(("early", "middle")):
        draw = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and layer != "lm_head":
                key = f"base_model.model.{layer}.lora_"
                tensors[key + "A.weight"] = torch.randn(4, module.in_features, generator=draw) / 4
                tensors[key + "B.weight"] = torch.randn(module.out_features, 4, generator=draw) / 4
        write_adapter(root / name, {"r": 4, "lora_alpha": 8}, save(tensors))
        folders.append(root / name)
    return Trained(root, *folders)


@pytest.fixture(scope="session")
def placed() -> list[PlacedRecord]:
    """40 records of 4 contributions: 36 ideas, one verbatim copy of contribution 1 among them."""
    lines = [
        (f"What is the {n} of {thing}?", f"The {n} of {thing} is {thing[::-1]} {len(n)}.")
        for n in ("colour", "distance", "name", "finder")
        for thing in (
            "Altara",
            "Belnis",
            "Corvex",
            "Draphon",
            "Eridor",
            "Fommira",
            "Gemquil",
            "Hydb",
        )
    ]
    records = [make_record(*line) for line in lines]
    texts = [make_record("", f"{thing} shines {n}.") for n, thing in enumerate("abcd")]
    contributions = [
        (3, records[:16]),
        (5, records[16:]),
        (8, records[:4]),  # the copier
        (9, texts),
    ]
    return place_records(contributions)


@pytest.fixture(scope="session")
def built(
    trained: Trained, placed: list[PlacedRecord], tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """An honest index of these records; whoever changes one changes a copy."""
    from node.attribution.tokens import TextTokenizer

    home = tmp_path_factory.mktemp("built")
    return build_index(trained.spec(), placed, TextTokenizer(trained.base), home, LocalRunner())
