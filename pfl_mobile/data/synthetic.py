"""Synthetic(alpha, beta): linear classifiers that differ by user, on inputs that differ by user.

Tian Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020, section 5.1. User k has
its own logistic model and its own inputs:

    u_k ~ N(0, alpha),  W_k ~ N(u_k, 1) [60, 10],  b_k ~ N(u_k, 1) [10]      (labels:  argmax(W_k' x + b_k))
    B_k ~ N(0, beta),   v_k ~ N(B_k, 1) [60],      x ~ N(v_k, diag(j^-1.2)), j = 1..60

so beta says how much the users' inputs differ. alpha is meant to say how much their models do, but u_k adds the same
number to all ten logits of an example, so it changes no label (a test shows it): the models differ by the N(., 1) of
their weights, whatever alpha is. Drawn with numpy's legacy
generator, whose streams never change.

The numbers are those of the program with which Dinh et al., "Personalized Federated Learning with Moreau
Envelopes" (pFedMe), NeurIPS 2020, made their Synthetic(0.5, 0.5): 100 users, seed 0, and this order of drawing:
all sizes, all u, all B, all v, then for each user W, b and its inputs. Facts of that program that differ from the
FedProx paper or are easily missed:

* alpha and beta are used as standard deviations, in N(0, alpha) and N(0, beta);
* a user has 5 (50 + floor(z)) examples, log z ~ N(4, 2): 205,795 in all, 250 to 25,810 a user with seed 0;
* floor(0.9 R) of a user's R examples are trained on, the rest tested. The authors shuffle them first, with a
  generator that they do not seed. Examples of a user are independent and identically distributed, so no shuffle
  is needed, and none of theirs could be repeated.

Rows: ``x`` float32 [R, 60], ``labels`` int64 [R] in 0..9, ``weight`` float32 [R] of ones.
Groups: quartiles of how many examples users have, ``quartile-1`` the fewest.
"""

from __future__ import annotations

import numpy as np

from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.data.registry import Generator, register
from pfl_mobile.data.user_groups import quartiles
from pfl_mobile.errors import ConfigError
from pfl_mobile.rows import Rows

DIMENSION, CLASSES = 60, 10


def build(
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    users: int = 100,
    times: int = 5,
    test: float = 0.1,
    seed: int = 0,
) -> ArrayPopulation:
    """Draw the users.

    Args:
        alpha: spread of the models' means, 0 or more; changes no label.
        beta: how much the inputs differ, 0 or more.
        users: how many.
        times: factor of the sizes; 5 as in pFedMe, 1 as in FedProx.
        test: fraction of each user's examples to test on.
        seed: of all draws.

    Raises:
        ConfigError: a negative spread, fewer than 2 users, a factor below 1, or a fraction outside (0, 1).
    """
    if alpha < 0 or beta < 0 or users < 2 or times < 1 or not 0 < test < 1:
        raise ConfigError(
            f"alpha={alpha}, beta={beta}, users={users}, times={times}, test={test}",
            mend="alpha and beta are 0 or more, users 2 or more, times 1 or more, test between 0 and 1",
        )
    draw = np.random.RandomState(seed)
    sizes = (draw.lognormal(4.0, 2.0, users).astype(np.int64) + 50) * times
    model_means = draw.normal(0.0, alpha, users)
    input_means = draw.normal(0.0, beta, users)
    centres = [draw.normal(mean, 1.0, DIMENSION) for mean in input_means]
    covariance = np.diag(np.arange(1, DIMENSION + 1, dtype=np.float64) ** -1.2)
    parts: dict[str, tuple[Rows, Rows]] = {}
    for user, (size, mean, centre) in enumerate(zip(sizes, model_means, centres, strict=True)):
        weights = draw.normal(mean, 1.0, (DIMENSION, CLASSES))
        bias = draw.normal(mean, 1.0, CLASSES)
        x = draw.multivariate_normal(centre, covariance, size)
        rows = {
            "x": x.astype(np.float32),
            "labels": np.argmax(x @ weights + bias, axis=1).astype(np.int64),
            "weight": np.ones(size, np.float32),
        }
        # The small term keeps 0.9 * 1000 at 900 although the product may fall just short of it in binary.
        cut = int((1 - test) * size + 1e-9)
        parts[f"user-{user:03d}"] = (
            {n: v[:cut] for n, v in rows.items()},
            {n: v[cut:] for n, v in rows.items()},
        )
    return ArrayPopulation.split("synthetic", parts, quartiles(sizes))


DATASET = register(
    Generator(
        name="synthetic",
        summary="Synthetic(alpha, beta) of FedProx, drawn as pFedMe does: 60 features, 10 classes",
        build=build,
    )
)
