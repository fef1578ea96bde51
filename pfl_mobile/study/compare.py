"""Strategies side by side on the same users, cohorts and initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import (
    ConfigError,
    OtherSettingsError,
    PrivacyError,
    TrainingError,
    TrainingFailedError,
)
from pfl_mobile.study.comparison import BASELINE, Compared, Comparison
from pfl_mobile.study.variants import for_strategy, inserts, with_weights

if TYPE_CHECKING:
    import numpy as np

    from pfl_mobile.study.evaluation import Evaluation
    from pfl_mobile.study.study import Study

#: ``on_progress(what, fraction done)``.
Report = Callable[[str, float | None], None]

#: Settings that differ from run to run.
_OWN = ("strategy", "parameters", "trained", "personal", "seed", "folder")


def compare(
    study: Study,
    names: Sequence[str],
    *,
    rounds: int,
    local_epochs: int | None = None,
    seeds: Sequence[int] = (0,),
    users: int | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_progress: Report | None = None,
) -> Comparison:
    """Run strategies on one study's model, data and settings.

    A strategy that needs personal layers gets the study's, every other one shares them too, so that each runs
    as its paper means it. One that inserts modules into a frozen model gets the model that the baseline ended with.
    One that does not fit the model or the data, whose merge is not one that the study's rule or privacy allows, or
    whose training fails (``Evaluation.no_verdict``), is listed with the reason. The study's rule and privacy are those
    of every strategy, the baseline too; each run has a budget of its own.

    Args:
        study: whose strategy does not matter.
        names: of the strategies; ``fedavg`` is added in front where it is missing.
        rounds: of each.
        local_epochs: passes over a device's examples in a round; by default the study's.
        seeds: one run with each; cohorts and initial weights are the same for all strategies of a seed.
        users: measured in each run; by default all, 2000 at most.
        folder: keeps each run in ``<strategy>/seed-<seed>``, with a checkpoint every round; None keeps none.
        resume: go on with the runs that are in the folder, and start those that are not; the result is that of a
            comparison that was never stopped, but for the seconds.
        on_progress: ``(what, fraction of that which is done)``.

    Raises:
        UnknownNameError: no such strategy.
        ConfigError: no seed, or a strategy needs personal layers and the study has none; the folder holds runs and
            ``resume`` is not set.
        OtherSettingsError: a run in the folder has other settings, data or code, or more rounds.
        CheckpointError: a run in the folder is damaged or in use.
        PrivacyError: the only strategy that is asked for cannot be private.
        TrainingError: the baseline's training fails.
    """
    say = on_progress or (lambda _what, _fraction: None)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"the seeds are {list(seeds)}", mend="give at least one, none twice")
    _ = study.local  # tried out once, where it is not given, so that all strategies have the same
    ordered = list(dict.fromkeys([BASELINE, *names]))
    found = {name: Compared(name) for name in ordered}
    trained: dict[int, dict[str, np.ndarray]] = {}

    def run(name: str, seed: int, step: str) -> None:
        def tell(what: str, fraction: float | None = None) -> None:
            say(f"{step}: {what}", fraction)

        one = for_strategy(study, name).replace(seed=seed, folder=run_folder(folder, name, seed))
        if inserts(one):  # a frozen backbone has to be a trained one
            one = with_weights(one, trained[seed])
            found[name].begins_with = BASELINE
        with one.run(rounds, local_epochs, resume=resume, on_progress=tell) as result:
            tell(f"{name}: measure every user")
            if name == BASELINE:
                trained[seed] = result.values
            evaluation = result.evaluate(users, baseline=False)
            if evaluation.no_verdict is not None:
                raise training_failed(name, seed, evaluation)
            found[name].evaluations.append(evaluation)
            found[name].costs.append(result.costs())
            found[name].privacy = _dearer(found[name].privacy, result.privacy)
            if seed == seeds[0]:
                found[name].losses = [math.nan if r.loss is None else r.loss for r in result.history]

    for number, name in enumerate(ordered):
        try:
            for place, seed in enumerate(seeds):
                of = f" (seed {seed})" if len(seeds) > 1 else ""
                run(name, seed, f"{number * len(seeds) + place + 1} of {len(ordered) * len(seeds)}{of}")
        except OtherSettingsError:  # of the folder, not of the strategy
            raise
        except (ConfigError, PrivacyError, TrainingError) as error:
            if len(names) == 1 or name == BASELINE:
                raise
            failed = error.failed if isinstance(error, TrainingFailedError) else {}
            found[name] = Compared(name, error=f"{error.code}: {error.message}", failed=failed)
    return Comparison(study.data.name, common_settings(study), rounds, tuple(seeds), found)


def training_failed(name: str, seed: int, found: Evaluation) -> TrainingFailedError:
    """The error of a strategy from whose run nothing may be concluded, so that it gets no figures."""
    error = TrainingFailedError(
        f"{name} with seed {seed}: {found.no_verdict}",
        mend="lower the learning rate or set clip where values are not finite; otherwise check the examples",
    )
    error.failed = dict(found.failed)
    return error


def run_folder(folder: str | Path | None, name: str, seed: int) -> Path | None:
    """Where a comparison in a folder keeps the run of a strategy with a seed; None without a folder."""
    return None if folder is None else Path(folder) / name / f"seed-{seed}"


def common_settings(study: Study) -> dict[str, Any]:
    """The settings of a study that all strategies of a comparison have; see ``Study.effective``."""
    _ = study.local  # that of all strategies
    shown = for_strategy(study, BASELINE).effective()  # its own strategy might say how much a device trains
    return {name: value for name, value in shown.items() if name not in _OWN}


def _dearer(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of two statements with the same settings the one with more rounds."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda said: int(said["rounds"]))
