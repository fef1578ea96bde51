"""Evaluations of made-up users."""

from __future__ import annotations

import numpy as np

from pfl_mobile.study.evaluation import Evaluation


def evaluation(shared, personal, metric="top1", groups=(), train=None, test=100, **more):
    n = len(shared)
    return Evaluation(
        metric,
        [f"u{i}" for i in range(n)],
        list(groups),
        np.full(n, 100) if train is None else np.asarray(train),
        np.full(n, test),
        np.asarray(shared, float),
        np.asarray(personal, float),
        **more,
    )


def noisy(gain, n=60, seed=0, **more):
    generator = np.random.default_rng(seed)
    shared = generator.normal(60, 5, n)
    return evaluation(shared, shared + gain + generator.normal(0, 3, n), **more)
