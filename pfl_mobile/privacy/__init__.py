"""User-level differential privacy of federated rounds: clipping, noise, accounting, audit.

    privacy = Gaussian(clip_norm=0.5, noise_multiplier=1.1, cohort=1_000, population=100_000,
                       participation=Poisson(), rounds=500, delta=1e-6, budget_epsilon=4)
    rounds = PrivateRounds(privacy, SecureNoise())
    rounds.check_budget()                       # raises PrivacyBudgetError when it is spent
    mean = rounds.merge(rows, privacy.weights(examples))
    print(rounds.ledger.statement())

A mechanism is a type: ``Gaussian`` (independent noise of the aggregator), ``Matrix`` (noise that is correlated over the
rounds), ``DeviceNoise`` (of each device) and ``NoNoise``. Each owns its fields, what they may be, what a round costs,
what it guarantees in words, and its noise.

Importing this needs numpy only; epsilon needs dp-accounting (`pip install 'pfl-mobile[privacy]'`).
"""

from pfl_mobile.privacy.accounting import Bound, Ledger
from pfl_mobile.privacy.calibration import required_noise, with_noise
from pfl_mobile.privacy.clipping import AdaptiveClip, clip_factor, clip_factors, l2_norm
from pfl_mobile.privacy.config import (
    PrivacyConfig,
    PrivacyField,
    checked_privacy,
    load_privacy,
    parse_privacy,
)
from pfl_mobile.privacy.device_noise import DeviceNoise
from pfl_mobile.privacy.gaussian import AdaptiveClipping, Gaussian, IndependentNoise
from pfl_mobile.privacy.local import private_update
from pfl_mobile.privacy.matrix import CorrelatedNoise, Matrix
from pfl_mobile.privacy.mechanism import MAX_WEIGHT, Mechanism, RoundNoise
from pfl_mobile.privacy.no_noise import NoNoise
from pfl_mobile.privacy.noise import Noise, SecureNoise, SimulatedNoise, require_secure
from pfl_mobile.privacy.participation import Fixed, Poisson, Unsampled
from pfl_mobile.privacy.private_mean import PrivateMean
from pfl_mobile.privacy.rounds import PrivateRounds

__all__ = [
    "MAX_WEIGHT",
    "AdaptiveClip",
    "AdaptiveClipping",
    "Bound",
    "CorrelatedNoise",
    "DeviceNoise",
    "Fixed",
    "Gaussian",
    "IndependentNoise",
    "Ledger",
    "Matrix",
    "Mechanism",
    "NoNoise",
    "Noise",
    "Poisson",
    "PrivacyConfig",
    "PrivacyField",
    "PrivateMean",
    "PrivateRounds",
    "RoundNoise",
    "SecureNoise",
    "SimulatedNoise",
    "Unsampled",
    "checked_privacy",
    "clip_factor",
    "clip_factors",
    "l2_norm",
    "load_privacy",
    "parse_privacy",
    "private_update",
    "require_secure",
    "required_noise",
    "with_noise",
]
