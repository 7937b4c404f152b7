"""The private surface of transformers that the slot cache stands on, for five architectures."""

import random
from pathlib import Path

import pytest

from node.serving.engine import EngineSettings, GenRequest, Sampling, Token

pytestmark = pytest.mark.ml


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma"])
def test_slot_cache_gives_the_tokens_of_the_plain_model(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from node.serving.slots import SlotCore
    from node.training.tiny_model import write_tokenizer

    torch.set_num_threads(1)
    fields = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16 if kind == "Gemma" else 8,
        "vocab_size": 259,
        "max_position_embeddings": 128,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    }
    settings = getattr(transformers, f"{kind}Config")(**fields)
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(settings).eval()
    write_tokenizer(tmp_path, [], merges=0)
    model.save_pretrained(tmp_path)
    core = SlotCore(EngineSettings(str(tmp_path), rows=4))
    rng = random.Random(1)
    prompts = [tuple(rng.randrange(256) for _ in range(5 + 7 * n)) for n in range(4)]
    for number, prompt in enumerate(prompts):
        core.submit(GenRequest(bytes([number]), b"t", None, prompt, Sampling(8, flags=1)))
    got: dict[bytes, list[int]] = {bytes([n]): [] for n in range(4)}
    while core.live:
        for id, event in core.step():
            if isinstance(event, Token):
                got[id].append(event.id)
    with torch.no_grad():
        for number, prompt in enumerate(prompts):
            ids = list(prompt)
            for _ in range(8):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert got[bytes([number])] == ids[len(prompt) :]
