"""The worlds hold what they say, and the measure of attribution measures."""

import pytest
from bench.attribution_world import (
    OWNERS_PHRASINGS,
    SMALL,
    WORLD_1,
    WORLD_2,
    WORLDS,
    WordTokenizer,
    World,
    base_texts,
    make_datanet,
)

from node.attribution.clusters import normalise

WORLDS_AND_SMALL = [SMALL, *WORLDS.values()]
NAMES = ["small", *map(str, WORLDS)]


@pytest.mark.parametrize("world", WORLDS_AND_SMALL, ids=NAMES)
def test_every_question_is_answered_by_its_owner_alone(world: World) -> None:
    datanet = make_datanet(world)
    honest = [text for text in datanet.texts if text.kind in ("honest", "sybil")]
    for question in datanet.questions:
        said = {t.contributor for t in honest if t.fact and question.answer in t.text.split()}
        assert question.owner in said
        whole = f"{question.prompt} {question.answer}"
        others = [t for t in honest if t.text.startswith(whole) and t.contributor != question.owner]
        assert others == []


@pytest.mark.parametrize("world", WORLDS_AND_SMALL, ids=NAMES)
def test_what_is_unknown_stands_in_no_record(world: World) -> None:
    datanet = make_datanet(world)
    records = [set(text.text.split()) for text in datanet.texts if text.fact]
    for unknown in datanet.unknown:
        named = {word for word in unknown.prompt.split() if word[0] == "e" and word[1:].isdigit()}
        told = {word for word in unknown.prompt.split() if word in world.relations}
        assert len(named) == 1
        wanted = named if unknown.kind == "thing" else named | told
        assert not any(wanted <= words for words in records), unknown


def test_a_thief_rewords_every_fact_of_its_victim_and_changes_nothing_else() -> None:
    honest, robbed = make_datanet(WORLD_1), make_datanet(WORLD_1, thief_of=3)
    added = robbed.texts[len(honest.texts) :]
    assert robbed.texts[: len(honest.texts)] == honest.texts
    assert (robbed.questions, robbed.unknown) == (honest.questions, honest.unknown)
    assert {text.fact for text in added} == {t.fact for t in honest.texts if t.contributor == 3}
    assert not {text.text for text in added} & {text.text for text in honest.texts}
    assert len(added) == 3 * (len(WORLD_1.phrasings) - OWNERS_PHRASINGS)


@pytest.mark.parametrize("world", WORLDS_AND_SMALL, ids=NAMES)
def test_all_texts_have_ids_and_one_word_is_one_word(world: World) -> None:
    tokenizer = WordTokenizer(world)
    texts = [text.text for text in make_datanet(world).texts] + base_texts(world, 200)
    for text in texts:
        ids = tokenizer.encode(text)
        assert [tokenizer.words[number] for number in ids] == text.split()
        shown = [word for word in text.split() if any(c.isalnum() for c in word)]
        assert list(normalise(text)) == shown
    assert len(set(tokenizer.words)) == len(tokenizer.words)


def test_world_2_shares_no_phrasing_with_the_others() -> None:
    for other in (world for world in WORLDS.values() if world is not WORLD_2):
        assert not set(WORLD_2.phrasings) & set(other.phrasings)
        assert not set(WORLD_2.relations) & set(other.relations)


@pytest.mark.ml
def test_lds_is_spearmans_rank_correlation() -> None:
    """By hand: equal order 1, reversed −1; of ranks (1, 2.5, 2.5, 4) with (1, 2, 3, 4) 0.9487."""
    import torch
    from bench.attribution_rivals import linear_datamodelling

    masks = torch.eye(4)
    losses = torch.tensor([[0.0, 0.0, 0.0], [-2.0, 2.0, -2.0], [-5.0, 5.0, -5.0], [-9.0, 9.0, -9]])
    scores = torch.tensor([[1.0, 2, 3, 4], [1.0, 2, 3, 4], [1.0, 7, 7, 9]])
    found = linear_datamodelling(scores, masks, losses).tolist()
    assert found == pytest.approx([1.0, -1.0, 0.9487], abs=1e-4)


@pytest.mark.ml
def test_rivals_agree_with_their_definitions() -> None:
    """DataInf with inverses written out; the dot by hand; text search finds its own text."""
    import torch
    from bench.attribution_rivals import DAMPING, bm25, datainf, gradient_dot

    draw = torch.Generator().manual_seed(1)
    records = {"a": torch.randn(5, 2, 3, generator=draw), "b": torch.randn(5, 1, 4, generator=draw)}
    asked = {"a": torch.randn(2, 2, 3, generator=draw), "b": torch.randn(2, 1, 4, generator=draw)}
    wanted, dot = torch.zeros(2, 5), torch.zeros(2, 5)
    for name, tensor in records.items():
        g, q = tensor.flatten(1), asked[name].flatten(1)
        damping = DAMPING * (g * g).sum(1).mean() / g.shape[1]
        eye = torch.eye(g.shape[1])
        inverses = [torch.linalg.inv(torch.outer(r, r) + damping * eye) for r in g]
        wanted += q @ torch.stack(inverses).mean(0) @ g.T
        dot += q @ g.T
    torch.testing.assert_close(datainf(asked, records), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradient_dot(asked, records), dot)
    texts = ["the red fox", "the blue bird", "the old tree the"]
    assert bm25(texts, texts).argmax(1).tolist() == [0, 1, 2]
