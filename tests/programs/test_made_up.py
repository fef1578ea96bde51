"""Made-up rows in the place of real ones: as many, of the same kinds, and nobody's."""

from __future__ import annotations

import torch
from torch import nn

from pfl_mobile import Head
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.programs.made_up import batch_like, text_batch, text_context
from pfl_mobile.programs.tasks import ClassificationTask, RegressionTask
from pfl_mobile.text.specials import BOS, EOS, PAD


class Rated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.films = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, film: torch.Tensor) -> torch.Tensor:
        return self.head(self.films(film))


def test_ids_stay_within_the_model_and_values_keep_their_kind() -> None:
    model = personalize(Rated(), [Head("head")])
    task = ClassificationTask(3, inputs=("film",))
    example = {
        "film": torch.tensor([8, 8, 8, 8] * 20),
        "labels": torch.full((80,), 2),
        "weight": torch.zeros(80),
    }
    made = batch_like(example, task, model)
    assert set(made["film"].tolist()) == set(range(9))
    assert set(made["labels"].tolist()) == {0, 1, 2}
    assert made["weight"].tolist() == [1.0] * 80
    flags = torch.tensor([[1.0, 0.0]] * 40)
    shares, amounts, any_ = flags * 0.5, flags * 7.5, flags - 0.3
    for values, least, most in (
        (flags, 0.0, 1.0),
        (shares, 0.0, 1.0),
        (amounts, 0.0, 99.0),
        (any_, -99.0, 99.0),
    ):
        found = batch_like({"x": values}, RegressionTask(), model)["x"]
        assert least <= float(found.min()) < float(found.max()) <= most
        assert bool((found == found.round()).all()) == (values is flags)


def test_made_up_texts_are_rows_as_an_encoder_gives_them() -> None:
    rows = text_batch(6, 8, 50)
    tokens, labels, weight = rows["tokens"], rows["labels"], rows["weight"]
    assert (tokens[:, 0] == BOS).all()
    for row in range(6):
        end = int((labels[row] == EOS).nonzero()[0, 0])
        assert torch.equal(tokens[row, 1 : end + 1], labels[row, :end]), "each label is the next token"
        assert (labels[row, end + 1 :] == PAD).all()
        assert (tokens[row, end + 1 :] == PAD).all()
        assert weight[row].sum() == end, "words count, ends do not"
    assert len({int((row == EOS).nonzero()[0, 0]) for row in labels}) > 1, "of several lengths"
    assert int(tokens.max()) < 50
    assert not torch.equal(tokens, text_batch(6, 8, 50, seed=1)["tokens"])


def test_a_made_up_context_ends_at_its_position() -> None:
    found = text_context(9, 50)
    place = int(found["position"])
    assert int(found["tokens"][0, 0]) == BOS
    assert (found["tokens"][0, 1 : place + 1] > EOS).all()
    assert (found["tokens"][0, place + 1 :] == PAD).all()
