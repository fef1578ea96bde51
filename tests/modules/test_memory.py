"""The n-gram memory against counting in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pfl_mobile import NgramMemory, VocabularySlots
from pfl_mobile.errors import ConfigError, OutOfVocabularyError
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from tests.backbones import decoder, encoder

VOCABULARY = 7
CAPACITY = 12


class Table(nn.Module):
    """Bigram logits: enough of a backbone for the memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return 3.0 * self.table(tokens)


def entries(messages: list[list[int]], order: int) -> tuple[Tensor, Tensor]:
    """Memory tensors of messages, newest entries kept."""
    rows = []
    for message in messages:
        for t in range(1, len(message)):
            context = [message[t - 1 - j] if t - 1 - j >= 0 else 0 for j in range(order - 1)]
            rows.append((message[t], context))
    rows = rows[-CAPACITY:]
    follow = torch.zeros(CAPACITY, dtype=torch.int64)
    context = torch.zeros(CAPACITY, order - 1, dtype=torch.int64)
    for i, (word, before) in enumerate(rows):
        follow[i], context[i] = word, torch.tensor(before)
    return follow, context


def naive(model: PersonalizedModel, tokens: list[int], log_p: Tensor, order: int) -> list[list[float]]:
    """Log-probabilities [T][V] of one message by counting."""
    values = model.values()
    gate = model.extras["memory"].gate
    stored = [
        (int(w), [int(c) for c in context])
        for w, context in zip(values["memory.next"], values["memory.context"], strict=True)
        if int(w) != 0
    ]
    result = []
    for t in range(len(tokens)):
        before = [tokens[t - j] if t - j >= 0 else 0 for j in range(order - 1)]
        parts: list[tuple[float, list[float]]] = []
        for k in range(order):
            found = [w for w, context in stored if context[:k] == before[:k]]
            if found:
                score = float(gate.bias[k]) + float(gate.weight[k]) * math.log(1 + len(found))
                parts.append((score, [found.count(w) / len(found) for w in range(VOCABULARY)]))
        parts.append((0.0, [math.exp(float(x)) for x in log_p[t]]))
        total = sum(math.exp(score) for score, _ in parts)
        mixed = [sum(math.exp(s) / total * p[w] for s, p in parts) for w in range(VOCABULARY)]
        result.append([math.log(p) for p in mixed])
    return result


words = st.integers(1, VOCABULARY - 1)
message = st.lists(words, min_size=1, max_size=6).map(lambda rest: [1, *rest])


@given(st.lists(message, max_size=4), message, st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_memory_is_interpolated_counting(
    messages: list[list[int]], query: list[int], order: int, seed: int
) -> None:
    model = personalize(Table(), [NgramMemory(capacity=CAPACITY, order=order, vocabulary=VOCABULARY)])
    generator = torch.Generator().manual_seed(seed)
    for p in model.extras["memory"].gate.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))
    follow, context = entries(messages, order)
    model.load_values({"memory.next": follow, "memory.context": context})
    tokens = torch.tensor([query])
    with torch.no_grad():
        ours = model(tokens)[0]
        log_p = F.log_softmax(model.forward_for_gradients(tokens), -1)[0]
    torch.testing.assert_close(ours, torch.tensor(naive(model, query, log_p, order)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.exp().sum(-1), torch.ones(len(query)), rtol=1e-5, atol=1e-5)


def test_empty_memory_is_exactly_the_log_softmax() -> None:
    backbone, (tokens,) = decoder()
    model = personalize(backbone, [NgramMemory(capacity=4)])
    with torch.no_grad():
        logits = 40.0 * torch.randn(*tokens.shape, 31)
        assert torch.equal(model.extras["memory"](logits, tokens), F.log_softmax(logits, -1))


def test_extreme_logits_and_counts_stay_finite() -> None:
    model = personalize(Table(), [NgramMemory(capacity=CAPACITY, order=3)])
    follow, context = entries([[1, 2, 3, 4], [1, 2, 3]], 3)
    model.load_values({"memory.next": follow, "memory.context": context})
    memory = model.extras["memory"]
    memory.gate.requires_grad_(True)
    logits = torch.zeros(1, 3, VOCABULARY)
    logits[..., 5] = 5000.0
    out = memory(logits, torch.tensor([[1, 2, 3]]))
    assert bool(torch.isfinite(out).all())
    assert bool(out[0, 1, 3].exp() > 0.05)  # the counts speak although the model gives no chance at all
    out.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in memory.gate.parameters())


def test_a_message_seen_before_becomes_likelier() -> None:
    backbone, _ = decoder()
    model = personalize(backbone, [NgramMemory(capacity=CAPACITY, order=4)])
    tokens = torch.tensor([[1, 9, 20, 14, 30]])
    before = model(tokens).log_softmax(-1)
    follow, context = entries([tokens[0].tolist()] * 2, 4)
    model.load_values({"memory.next": follow, "memory.context": context})
    after = model(tokens)
    for t in range(4):
        word = int(tokens[0, t + 1])
        assert after[0, t, word] > before[0, t, word]


def test_gate_is_frozen_on_a_device_and_learns_in_an_ordinary_loop() -> None:
    model = personalize(Table(), [NgramMemory(capacity=CAPACITY, order=3)])
    assert not [p for p in model.parameters() if p.requires_grad]
    assert {"memory.gate.weight", "memory.gate.bias"} <= set(model.frozen_tensors())
    follow, context = entries([[1, 2, 3, 4], [1, 2, 3, 5]], 3)
    model.load_values({"memory.next": follow, "memory.context": context})
    gate = model.extras["memory"].gate.requires_grad_(True)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    tokens, labels = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.nll_loss(model(tokens).transpose(1, 2), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_gradients_program_does_not_see_the_memory() -> None:
    model = personalize(Table(), [NgramMemory(capacity=CAPACITY, order=3)])
    follow, context = entries([[1, 2, 3, 4]], 3)
    tokens = torch.tensor([[1, 2]])
    before = model.forward_for_gradients(tokens)
    model.load_values({"memory.next": follow, "memory.context": context})
    assert torch.equal(model.forward_for_gradients(tokens), before)
    assert not any(info.in_gradients for info in model.device_tensors())


def test_slots_are_remembered_once_they_are_assigned() -> None:
    backbone, _ = decoder()
    model = personalize(
        backbone,
        [NgramMemory(capacity=CAPACITY, order=3, vocabulary=33), VocabularySlots("embed", "head", count=2)],
    )
    follow, context = entries([[1, 9, 31], [1, 9, 32]], 3)
    model.load_values(
        {"memory.next": follow, "memory.context": context, "slots.active": torch.tensor([1.0, 0.0])},
        partial=True,
    )
    with torch.no_grad():
        p = model(torch.tensor([[1, 9]]))[0, 1].exp()
    assert float(p[31]) > 0.1
    assert float(p[32]) == 0.0


def test_ids_outside_of_the_vocabulary_are_refused() -> None:
    model = personalize(Table(), [NgramMemory(capacity=CAPACITY, order=3, vocabulary=VOCABULARY)])
    follow = torch.full((CAPACITY,), VOCABULARY)
    with pytest.raises(OutOfVocabularyError, match=r"memory\.next"):
        model.load_values({"memory.next": follow}, partial=True)
    with pytest.raises(OutOfVocabularyError, match=r"memory\.next"):
        model.load_values({"memory.next": -follow}, partial=True)


def with_shared(model: PersonalizedModel) -> dict[tuple[int, ...], tuple[dict[int, float], float]]:
    """Fill everybody's n-grams of ``model``; returns them by context, with the scores."""
    known = {(3,): ({4: 0.75, 5: 0.25}, -0.5), (2, 3): ({6: 1.0, 1: 0.0}, 0.3), (5,): ({2: 1.0}, 1.0)}
    shared = model.extras["memory"].shared
    for context, (words, score) in known.items():
        row = context[0]
        if len(context) == 2:
            bucket = int(shared.bucket(torch.tensor(context[0]), torch.tensor(context[1])))
            shared.key[bucket] = context[0] * VOCABULARY + context[1]
            row = VOCABULARY + bucket
        shared.score[row] = score
        for i, (word, part) in enumerate(words.items()):
            shared.words[row, i], shared.parts[row, i] = word, part
    return known


def test_everybodys_ngrams_are_one_more_part_of_the_mixture() -> None:
    config = NgramMemory(capacity=CAPACITY, order=3, vocabulary=VOCABULARY, shared=5, followers=2)
    model = personalize(Table(), [config])
    tokens = torch.tensor([[1, 2, 3, 3, 5, 4]])
    log_p = F.log_softmax(model.forward_for_gradients(tokens), -1)[0]
    assert torch.equal(model(tokens)[0], log_p)  # an empty table changes nothing
    known = with_shared(model)
    assert {"memory.shared.words", "memory.shared.score"} <= set(model.frozen_tensors())
    for filled in (False, True):
        if filled:
            follow, context = entries([[1, 2, 3, 4], [1, 2, 3]], 3)
            model.load_values({"memory.next": follow, "memory.context": context})
        own = torch.tensor(naive(model, tokens[0].tolist(), log_p, 3)).exp()
        out = model(tokens)[0].exp()
        torch.testing.assert_close(out.sum(-1), torch.ones(6), rtol=1e-5, atol=1e-5)
        for t in range(6):
            before = tuple(tokens[0, max(t - 1, 0) : t + 1].tolist())
            words, score = known.get(before, known.get(before[-1:], ({}, -1e9)))
            expected = torch.zeros(VOCABULARY)
            for word, part in words.items():
                expected[word] = part
            if not filled:  # beside the LM, whose score is 0
                weight = math.exp(score) / (1 + math.exp(score))
                torch.testing.assert_close(out[t], weight * expected + (1 - weight) * own[t])
            elif not words:
                torch.testing.assert_close(out[t], own[t], rtol=1e-4, atol=1e-5)


def test_wrong_places_and_settings_are_named() -> None:
    backbone, example = encoder()
    with pytest.raises(ConfigError, match="not \\[batch, length, vocabulary\\]"):
        personalize(backbone, [NgramMemory()], example=example)
    with pytest.raises(ConfigError, match="order=1"):
        NgramMemory(order=1)
    with pytest.raises(ConfigError, match="capacity=0"):
        NgramMemory(capacity=0)
    with pytest.raises(ConfigError, match="followers=0"):
        NgramMemory(shared=8, vocabulary=9)
    with pytest.raises(ConfigError, match="size of the vocabulary"):
        NgramMemory(shared=8, followers=2)
    clash = nn.ModuleDict({"memory": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match="called 'memory' too"):
        personalize(clash, [NgramMemory()])


def discounted(
    stored: list[tuple[int, list[int]]],
    query: list[int],
    t: int,
    order: int,
    discount: float,
    below: list[float],
) -> list[float]:
    """p_{order-1} [V] after position t by counting; ``below`` is p_{-1}."""
    before = [query[t - j] if t - j >= 0 else 0 for j in range(order - 1)]
    for k in range(order):
        found = [w for w, context in stored if context[:k] == before[:k]]
        if found:
            left = discount * len(set(found)) / len(found)
            below = [
                max(found.count(w) - discount, 0.0) / len(found) + left * below[w] for w in range(VOCABULARY)
            ]
    return below


@given(
    st.lists(message, max_size=4),
    message,
    st.integers(2, 5),
    st.sampled_from([0.3, 0.75]),
    st.sampled_from([(0.0, 0.5), (0.6, 0.8), (0.4, 0.0)]),
)
@settings(max_examples=60, deadline=None)
def test_discounted_memory_is_absolute_discounting_with_a_share_by_evidence(
    messages: list[list[int]], query: list[int], order: int, discount: float, told: tuple[float, float]
) -> None:
    evidence, fade = told
    memory = NgramMemory(
        capacity=CAPACITY, order=order, discount=discount, share=0.3, evidence=evidence, fade=fade, specials=2
    )
    model = personalize(Table(), [memory])
    follow, context = entries(messages, order)
    model.load_values({"memory.next": follow, "memory.context": context})
    tokens = torch.tensor([query])
    with torch.no_grad():
        ours = model(tokens)[0].exp()
        backbone = F.softmax(model.forward_for_gradients(tokens), -1)[0].tolist()
    stored = [(int(w), c.tolist()) for w, c in zip(follow, context, strict=True) if int(w)]
    logit = math.log(0.3 / 0.7)
    seen = 0.0
    for t in range(len(query)):
        own = discounted(stored, query, t, order, discount, backbone[t])
        share = 1.0 / (1.0 + math.exp(-logit - evidence * seen))
        mixed = [share * a + (1.0 - share) * b for a, b in zip(own, backbone[t], strict=True)]
        torch.testing.assert_close(ours[t], torch.tensor(mixed), rtol=1e-4, atol=1e-6)
        if t + 1 < len(query):
            word = query[t + 1]
            ratio = 0.0 if word < 2 else math.log(own[word] / backbone[t][word])
            seen = fade * seen + min(max(ratio, -3.0), 3.0)
    torch.testing.assert_close(ours.sum(-1), torch.ones(len(query)), rtol=1e-5, atol=1e-5)


def test_empty_discounted_memory_is_exactly_the_log_softmax() -> None:
    backbone, (tokens,) = decoder()
    model = personalize(backbone, [NgramMemory(capacity=4, discount=0.75)])
    with torch.no_grad():
        logits = 40.0 * torch.randn(*tokens.shape, 31)
        assert torch.equal(model.extras["memory"](logits, tokens), F.log_softmax(logits, -1))


def test_discounted_memory_says_nothing_of_free_slots_and_stays_finite() -> None:
    slots = VocabularySlots(embedding="embed", output="head", count=3)
    backbone, (tokens,) = decoder()
    model = personalize(backbone, [slots, NgramMemory(capacity=CAPACITY, order=3, discount=0.75)])
    follow, context = entries([tokens[0].tolist()], 3)
    model.load_values({"memory.next": follow, "memory.context": context}, partial=True)
    with torch.no_grad():
        out = model(tokens)
    assert bool(torch.isfinite(out).all())
    assert bool((out[..., -3:].exp() == 0).all())


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ({"discount": 1.0}, "discount=1.0"),
        ({"discount": -0.1}, "discount=-0.1"),
        ({"discount": 0.5, "share": 1.0}, "share=1.0"),
        ({"discount": 0.5, "evidence": math.inf}, "evidence=inf"),
        ({"discount": 0.5, "fade": 1.5}, "fade=1.5"),
        ({"discount": 0.5, "specials": 0}, "specials=0"),
        ({"discount": 0.5, "vocabulary": 9, "shared": 8, "followers": 2}, "n-grams of everybody"),
    ],
)
def test_numbers_of_a_discount_that_make_no_sense_are_named(numbers: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        NgramMemory(**numbers)
