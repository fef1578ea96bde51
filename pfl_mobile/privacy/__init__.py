"""User-level differential privacy of federated rounds: clipping, noise, accounting, audit.

    config = PrivacyConfig(clip_norm=0.5, noise_multiplier=1.1, sampling="poisson", population=100_000,
                           cohort=1_000, rounds=500, delta=1e-6, budget_epsilon=4)
    rounds = PrivateRounds(config, SecureNoise())
    rounds.check_budget()                       # raises PrivacyBudgetError when it is spent
    mean = rounds.merge(rows, config.weights(examples))
    print(rounds.ledger.statement())

Importing this needs numpy only; epsilon needs dp-accounting (`pip install 'pfl-mobile[privacy]'`).
"""

from pfl_mobile.privacy.accounting import Bound, Ledger
from pfl_mobile.privacy.calibration import required_noise, with_noise
from pfl_mobile.privacy.clipping import AdaptiveClip, clip_factor, clip_factors, l2_norm
from pfl_mobile.privacy.config import MAX_WEIGHT, AdaptiveClipping, PrivacyConfig
from pfl_mobile.privacy.local import private_update
from pfl_mobile.privacy.mechanisms import GaussianMechanism, MatrixMechanism, Mechanism, mechanism_for
from pfl_mobile.privacy.noise import Noise, SecureNoise, SimulatedNoise, require_secure
from pfl_mobile.privacy.private_mean import PrivateMean
from pfl_mobile.privacy.rounds import PrivateRounds

__all__ = [
    "MAX_WEIGHT",
    "AdaptiveClip",
    "AdaptiveClipping",
    "Bound",
    "GaussianMechanism",
    "Ledger",
    "MatrixMechanism",
    "Mechanism",
    "Noise",
    "PrivacyConfig",
    "PrivateMean",
    "PrivateRounds",
    "SecureNoise",
    "SimulatedNoise",
    "clip_factor",
    "clip_factors",
    "l2_norm",
    "mechanism_for",
    "private_update",
    "require_secure",
    "required_noise",
    "with_noise",
]
