"""Who may take part in a round."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from pfl_mobile.privacy import Fixed, Poisson, PrivacyField, Unsampled
from pfl_mobile.privacy.participation import SAMPLINGS


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_kind_has_the_name_that_files_and_options_have_for_it(sampling: str) -> None:
    assert SAMPLINGS[sampling]().sampling == sampling


@pytest.mark.parametrize("kind", [Poisson, Fixed])
def test_with_sampling_a_device_may_be_in_any_round(kind: type[Poisson | Fixed]) -> None:
    assert kind.sampled
    assert kind().most(7) == 7
    assert kind().rate(50, 200) == 0.25
    assert (kind().min_separation, kind().max_participations) == (1, None)
    with pytest.raises(ValidationError, match="min_separation"):
        kind(min_separation=2)  # type: ignore[call-arg]
    assert kind().problem(200) == ""
    assert "set population" in kind().problem(None)


def test_without_sampling_separation_and_limit_hold() -> None:
    found = Unsampled(min_separation=10, max_participations=3)
    assert [found.most(n) for n in (0, 1, 10, 11, 21, 500)] == [0, 1, 1, 2, 3, 3]
    assert found.rate(50, 200) == 1.0
    assert found.problem(None) == ""


def test_each_kind_says_what_it_costs_and_assumes() -> None:
    plain = {"class": "GaussianDpEvent", "noise_multiplier": 2.0}
    assert Unsampled().event(2.0, 50, 200) == plain
    assert Poisson().event(2.0, 50, 200) == {
        "class": "PoissonSampledDpEvent",
        "sampling_probability": 0.25,
        "event": plain,
    }
    assert Fixed().event(2.0, 50, 200) == {
        "class": "SampledWithoutReplacementDpEvent",
        "source_dataset_size": 200,
        "sample_size": 50,
        "event": plain | {"noise_multiplier": 1.0},  # who is replaced by another moves a sum twice as far
    }
    assert "coin" in Poisson().assumptions(50, 200, None)[0]
    assert "50 devices drawn uniformly" in Fixed().assumptions(50, 200, None)[0]
    assert "epsilon 1.5 " in Fixed().assumptions(50, 200, 1.5)[1]
    limited = " ".join(Unsampled(min_separation=4, max_participations=2).assumptions(50, 200, None))
    assert "at least 4 apart and a device takes part at most 2 times" in limited


@pytest.mark.parametrize("version", ['"version": 1,', '"version": 2,', ""])
def test_who_reads_strictly_gets_no_text_for_a_number(version: str) -> None:
    text = f'{{{version} "mechanism": "none", "clip_norm": %s, "cohort": 3}}'
    reader: TypeAdapter[PrivacyField] = TypeAdapter(PrivacyField)
    assert reader.validate_json(text % "1.0", strict=True).clip_norm == 1.0
    with pytest.raises(ValidationError, match="clip_norm"):
        reader.validate_json(text % '"1.0"', strict=True)
