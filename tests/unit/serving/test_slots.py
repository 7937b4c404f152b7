"""The core gives each row in a mixed batch what it gets alone, and frees what it took."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.serving.engine import (
    AdapterBusy,
    AdapterRef,
    BadAdapter,
    BadSampling,
    DeadlinePassed,
    EngineSettings,
    Finish,
    GenRequest,
    Overloaded,
    Sampling,
    Token,
    TooLong,
    UnknownAdapter,
    WrongBase,
)

pytestmark = pytest.mark.ml

MakeAdapter = Callable[..., tuple[bytes, str]]


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def core(tiny_base: Path, clock: Clock):
    from node.serving.slots import SlotCore

    return SlotCore(EngineSettings(str(tiny_base), rows=16), now_ms=clock)


@pytest.fixture(autouse=True)
def left_clean(core) -> Iterator[None]:
    """Every test ends with no live request, no promised row and no reference."""
    yield
    assert core.live == 0
    assert core._reserved == 0
    assert core._rows == []
    assert all(packed.refs == packed.rows == 0 for packed in core._bank._packed.values())


def run(core, ids, reveal=None):
    """Step until all have finished: id → (tokens by choice, Finish)."""
    tokens: dict[bytes, list[Token]] = {id: [] for id in ids}
    finished: dict[bytes, Finish] = {}
    for _ in range(2_000):
        if len(finished) == len(ids):
            return tokens, finished
        for id, event in core.step():
            if isinstance(event, Finish):
                assert id not in finished
                finished[id] = event
            else:
                tokens[id].append(event)
    raise AssertionError("requests did not finish")


def request(number: int, adapter: bytes | None = None, length: int = 9, **sampling: object):
    rng = random.Random(number)
    prompt = tuple(rng.randrange(256) for _ in range(length))
    seed = number.to_bytes(32, "big")
    fields = {"max_tokens": 12, "flags": 1, **sampling}
    return GenRequest(
        number.to_bytes(16, "big"), b"tenant", adapter, prompt, Sampling(**fields), seed
    )


def load_many(core, make_adapter: MakeAdapter) -> list[bytes | None]:
    """Twelve adapters over three buckets and two sets of targets, and the base."""
    hashes: list[bytes | None] = []
    for number in range(12):
        rank = (4, 8, 16, 20)[number % 4]
        targets = ("q_proj", "v_proj") if number % 5 == 4 else None
        hash, folder = (
            make_adapter(number, rank, targets) if targets else make_adapter(number, rank)
        )
        core.load(AdapterRef(hash, folder))
        hashes.append(hash)
    return [*hashes, None]


def test_mixed_batch_gives_each_row_its_tokens_alone(core, make_adapter) -> None:
    adapters = load_many(core, make_adapter)
    requests = [
        request(n, adapters[n % 13], 5 + 3 * (n % 7), temperature_milli=(0, 800)[n % 2])
        for n in range(16)
    ]
    for each in requests:
        core.submit(each)
    together, _ = run(core, [each.id for each in requests])
    assert core.stats().batch_adapters_max >= 8
    for each in requests:
        core.submit(each)
        alone, _ = run(core, [each.id])
        mine, theirs = together[each.id], alone[each.id]
        assert [t.id for t in mine] == [t.id for t in theirs]
        for a, b in zip(mine, theirs, strict=True):
            assert abs(a.logprob - b.logprob) < 1e-5


def test_adapters_change_the_answer_and_equal_peft(core, make_adapter, tiny_base) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    hash, folder = make_adapter(77, 8)
    core.load(AdapterRef(hash, folder))
    ours, base = request(1, hash), request(2)
    base = GenRequest(base.id, b"t", None, ours.prompt, base.sampling, base.seed)
    core.submit(ours)
    core.submit(base)
    tokens, _ = run(core, [ours.id, base.id])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    with torch.no_grad():
        ids = list(ours.prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert [t.id for t in tokens[ours.id]] == ids[9:]
    assert [t.id for t in tokens[base.id]] != ids[9:]


def test_joins_and_leaves_in_any_order_change_no_token(core, make_adapter) -> None:
    adapters = load_many(core, make_adapter)
    requests = [
        request(100 + n, adapters[n % 13], 4 + n % 9, max_tokens=3 + (n * 5) % 17, n=1 + n % 3)
        for n in range(12)
    ]
    expected = {}
    for each in requests:
        core.submit(each)
        expected[each.id] = run(core, [each.id])[0][each.id]
    waiting, got = list(requests), {each.id: [] for each in requests}
    rng = random.Random(5)
    for _ in range(400):
        if waiting and rng.random() < 0.4:
            core.submit(waiting.pop())
        for id, event in core.step():
            if isinstance(event, Token):
                got[id].append(event)
        if not waiting and not core.live:
            break
    for each in requests:
        for choice in range(each.sampling.n):
            mine = [t.id for t in got[each.id] if t.choice == choice]
            assert mine == [t.id for t in expected[each.id] if t.choice == choice]


def test_choices_differ_and_seeds_repeat(core) -> None:
    results = []
    for number in (7, 8):
        each = request(7, n=4, temperature_milli=1500)
        each = GenRequest(
            number.to_bytes(16, "big"), b"t", None, each.prompt, each.sampling, each.seed
        )
        core.submit(each)
        tokens, finished = run(core, [each.id])
        assert finished[each.id].reasons == ("length",) * 4
        results.append([[t.id for t in tokens[each.id] if t.choice == c] for c in range(4)])
    assert results[0] == results[1]
    assert len({tuple(choice) for choice in results[0]}) == 4


def test_long_prompt_in_chunks_equals_transformers(core, tiny_base, monkeypatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(core, "_chunk", 17)
    each = request(5, length=120)
    core.submit(each)
    tokens, _ = run(core, [each.id])
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        raw = torch.log_softmax(model(torch.tensor([list(each.prompt)])).logits[0, -1], -1)
    assert tokens[each.id][0].id == int(raw.argmax())
    assert abs(tokens[each.id][0].logprob - float(raw.max())) < 1e-5


def test_sampling_waits_for_the_seed_and_prefill_does_not(core) -> None:
    each = request(30, temperature_milli=700)
    core.submit(each)
    expected, _ = run(core, [each.id])
    waits = GenRequest(b"w" * 16, b"t", None, each.prompt, each.sampling, None)
    other = request(31, max_tokens=30)
    core.submit(waits)
    core.submit(other)
    before = core.stats().prompt_tokens
    events = [event for _ in range(6) for event in core.step()]
    assert core.stats().prompt_tokens == before + len(waits.prompt) + len(other.prompt)
    assert {id for id, _ in events} == {other.id}
    core.reveal(waits.id, each.seed)
    tokens, _ = run(core, [waits.id, other.id])
    assert [t.id for t in tokens[waits.id]] == [t.id for t in expected[each.id]]


def test_cancel_frees_row_and_reference_at_once(core, make_adapter) -> None:
    hash, folder = make_adapter(55, 8)
    core.load(AdapterRef(hash, folder))
    each = request(40, hash, max_tokens=200, n=3)
    core.submit(each)
    for _ in range(3):
        core.step()
    with pytest.raises(AdapterBusy):
        core.unload(hash)
    ((id, finish),) = core.cancel(each.id)
    assert (id, finish.reasons) == (each.id, ("cancelled",) * 3)
    assert all(ending.answer_tokens > 0 for ending in finish.choices)
    core.unload(hash)
    with pytest.raises(UnknownAdapter):
        core.submit(each)


def test_cancel_before_the_first_token_ends_every_choice(core) -> None:
    waits = GenRequest(
        b"x" * 16, b"t", None, (1, 2, 3), Sampling(max_tokens=5, n=2, temperature_milli=500), None
    )
    core.submit(waits)
    core.step()
    ((_, finish),) = core.cancel(waits.id)
    assert [ending.answer_tokens for ending in finish.choices] == [0, 0]
    assert core.cancel(waits.id) == []


def test_draining_serves_what_is_live_and_refuses_the_next(core, make_adapter) -> None:
    hash, folder = make_adapter(56, 8)
    core.load(AdapterRef(hash, folder))
    each = request(41, hash)
    core.submit(each)
    core.step()
    core.unload(hash, drain=True)
    with pytest.raises(UnknownAdapter):
        core.submit(request(42, hash))
    _, finished = run(core, [each.id])
    assert finished[each.id].reasons == ("length",)
    assert hash not in core._bank._packed


def test_reload_under_an_old_folder_name_serves_new_weights(core, make_adapter, tmp_path) -> None:
    import shutil

    first, old = make_adapter(60, 8)
    second, new = make_adapter(61, 8)
    shutil.copytree(old, tmp_path / "name")
    core.load(AdapterRef(first, str(tmp_path / "name")))
    core.submit(request(50, first))
    a, _ = run(core, [request(50).id])
    shutil.rmtree(tmp_path / "name")
    shutil.copytree(new, tmp_path / "name")
    core.load(AdapterRef(second, str(tmp_path / "name")))
    core.submit(request(50, second))
    b, _ = run(core, [request(50).id])
    assert [t.id for t in a[request(50).id]] != [t.id for t in b[request(50).id]]


def test_adapter_of_another_base_is_refused(core, make_adapter, tmp_path) -> None:
    import torch
    from safetensors.torch import load_file, save

    from node.serving.adapters import write_adapter

    _, folder = make_adapter(1, 8)
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    wider = {key: torch.cat([t, t], 1) if "lora_A" in key else t for key, t in tensors.items()}
    hash = write_adapter(tmp_path / "a", {"r": 8, "lora_alpha": 8}, save(wider))
    with pytest.raises(WrongBase):
        core.load(AdapterRef(hash, str(tmp_path / "a")))
    elsewhere = {key.replace("layers.1", "layers.9"): t for key, t in tensors.items()}
    hash = write_adapter(tmp_path / "b", {"r": 8, "lora_alpha": 8}, save(elsewhere))
    with pytest.raises(WrongBase):
        core.load(AdapterRef(hash, str(tmp_path / "b")))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"max_tokens": 0}, BadSampling),
        ({"max_tokens": 248}, TooLong),
        ({"top_p_milli": 0}, BadSampling),
        ({"temperature_milli": 2001}, BadSampling),
        ({"stop": (b"",)}, BadSampling),
        ({"n": 9}, BadSampling),
    ],
)
def test_sampling_out_of_range_is_refused(core, change, error) -> None:
    with pytest.raises(error):
        core.submit(request(1, **change))


def test_prompt_and_answer_may_fill_the_model_exactly(core) -> None:
    each = request(1, length=246, max_tokens=10)
    core.submit(each)
    _, finished = run(core, [each.id])
    assert finished[each.id].choices[0].answer_tokens == 10


def test_token_outside_the_vocabulary_is_refused(core) -> None:
    bad = GenRequest(b"y" * 16, b"t", None, (core.info.vocab,), Sampling(max_tokens=1))
    with pytest.raises(BadSampling):
        core.submit(bad)


def test_deadline_ends_a_stream_with_what_it_has(core, clock: Clock) -> None:
    each = request(70, max_tokens=100)
    each = GenRequest(
        each.id, b"t", None, each.prompt, each.sampling, each.seed, clock.now_ms + 500
    )
    core.submit(each)
    events = [event for _ in range(5) for event in core.step()]
    clock.now_ms += 501
    events += core.step()
    finish = events[-1][1]
    assert isinstance(finish, Finish)
    assert finish.reasons == ("deadline",)
    assert finish.choices[0].answer_tokens == len(events) - 1
    with pytest.raises(DeadlinePassed):
        core.submit(each)


def test_full_queue_refuses_and_keeps_nothing(core) -> None:
    requests = [request(2_000 + number, max_tokens=200) for number in range(65)]
    for each in requests[:64]:  # a tenant's share of the queue
        core.submit(each)
    with pytest.raises(Overloaded) as refusal:
        core.submit(requests[64])
    assert 1 <= refusal.value.retry_after_s <= 60
    for each in requests[:64]:
        core.cancel(each.id)


def test_stop_string_ends_the_answer_unshown(core) -> None:
    each = request(90, max_tokens=20)
    core.submit(each)
    tokens, _ = run(core, [each.id])
    shown = b"".join(token.text for token in tokens[each.id])
    pieces = core._pieces
    stop = b"".join(pieces[t.id] for t in tokens[each.id][5:7])
    assert len(stop) == 2
    core.submit(request(90, max_tokens=20, stop=(stop,)))
    again, finished = run(core, [each.id])
    assert finished[each.id].reasons == ("stop",)
    text = b"".join(token.text for token in again[each.id]) + finished[each.id].choices[0].tail
    assert stop not in text
    assert (shown + b"").startswith(text) or text in shown


def test_evidence_has_a_word_per_token_and_a_print_per_sixteen(core) -> None:
    each = request(91, max_tokens=17)
    core.submit(each)
    tokens, finished = run(core, [each.id])
    ending = finished[each.id].choices[0]
    words = [
        int.from_bytes(ending.logprobs[at : at + 4], "big", signed=True) for at in range(0, 68, 4)
    ]
    assert words == [round(token.logprob * 2**20) for token in tokens[each.id]]
    assert len(ending.fingerprints) == 2 * 32


def test_adapters_are_told_with_where_they_lie(tiny_base: Path, make_adapter: MakeAdapter) -> None:
    from node.serving.slots import SlotCore

    made = [make_adapter(number) for number in range(3)]
    size = SlotCore(EngineSettings(str(tiny_base), rows=4)).load(AdapterRef(*made[0])).bytes
    core = SlotCore(EngineSettings(str(tiny_base), rows=4, ram_bytes=2 * size))
    for hash, folder in made:
        core.load(AdapterRef(hash, folder))
    assert {info.hash: info.tier for info in core.adapters()} == {
        made[0][0]: "disk",  # the longest unused made room
        made[1][0]: "ram",
        made[2][0]: "ram",
    }
    late = make_adapter(3)
    core.register(AdapterRef(*late))
    assert {info.hash: info.tier for info in core.adapters()}[late[0]] == "disk"
    core.submit(request(2, late[0]))
    run(core, [request(2).id])
    false = AdapterRef(bytes(32), late[1])
    core.register(false)
    with pytest.raises(BadAdapter):
        core.submit(request(3, false.hash))
    core.submit(request(1, made[0][0]))
    run(core, [request(1).id])
    assert {info.hash: info.tier for info in core.adapters()}[made[0][0]] == "slot"
