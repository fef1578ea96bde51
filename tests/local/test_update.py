from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import NonFiniteError, TensorMismatchError
from pfl_mobile.local import update as u
from pfl_mobile.plan.optimizers import AdamW, Momentum, Sgd

SHAPES = {"b": (3,), "a.w": (2, 3), "s": (1,)}


def arrays(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {n: (scale * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}


def ones(value=1.0):
    return {n: np.full(s, value, np.float32) for n, s in SHAPES.items()}


def equal(a, b):
    return all(np.array_equal(a[n], b[n]) for n in SHAPES)


OPTIMIZERS = [
    Sgd(lr=0.1),
    Sgd(lr=0.1, weight_decay=0.05),
    Momentum(lr=0.1),
    Momentum(lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.02),
    AdamW(lr=0.01),
    AdamW(lr=0.05, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.0),
]


def of_torch(o, parameters):
    if isinstance(o, AdamW):
        return torch.optim.AdamW(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    momentum, nesterov = (o.momentum, o.nesterov) if isinstance(o, Momentum) else (0.0, False)
    return torch.optim.SGD(
        parameters, lr=o.lr, momentum=momentum, nesterov=nesterov, weight_decay=o.weight_decay
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 12), exponent=st.integers(-3, 3))
@settings(max_examples=15, deadline=None)
def test_optimizer_is_that_of_torch(optimizer, seed, steps, exponent):
    theta, state = arrays(seed), {}
    parameters = {n: torch.nn.Parameter(torch.from_numpy(v.copy())) for n, v in theta.items()}
    reference = of_torch(optimizer, list(parameters.values()))
    for step in range(steps):
        gradient = arrays(seed + step + 1, 10.0**exponent)
        theta, state = u.update(theta, gradient, optimizer, state)
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradient[name].copy())
        reference.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(
            theta[name], parameter.detach().numpy(), rtol=2e-5, atol=2e-6 * 10.0 ** max(exponent, 0)
        )


def naive(theta, g, o, state, anchor, mu, control, mask, clip):
    """The rule of the design in float64, one number at a time."""
    norm = math.sqrt(sum(float(x) ** 2 for v in g.values() for x in v.ravel()))
    out = {}
    for name, value in theta.items():
        flat = []
        for i, x in enumerate(value.ravel().astype(float)):
            d = float(g[name].ravel()[i]) * (min(1.0, clip / norm) if norm else 1.0)
            d += mu * (x - float(anchor[name].ravel()[i])) + float(control[name].ravel()[i])
            k = (name, i)
            decay = 0.0
            if isinstance(o, AdamW):
                t, m, v = state.get(k, (0, 0.0, 0.0))
                t, m, v = (
                    t + 1,
                    o.betas[0] * m + (1 - o.betas[0]) * d,
                    o.betas[1] * v + (1 - o.betas[1]) * d * d,
                )
                state[k] = (t, m, v)
                d = (m / (1 - o.betas[0] ** t)) / (math.sqrt(v / (1 - o.betas[1] ** t)) + o.eps)
                decay = o.weight_decay * x
            else:
                d += o.weight_decay * x
                if isinstance(o, Momentum):
                    state[k] = o.momentum * state.get(k, 0.0) + d
                    d = d + o.momentum * state[k] if o.nesterov else state[k]
            flat.append(x - float(mask[name].ravel()[i]) * o.lr * (d + decay))
        out[name] = np.array(flat).reshape(value.shape)
    return out


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@given(
    seed=st.integers(0, 2**32 - 1), mu=st.sampled_from([0.0, 0.1, 3.0]), clip=st.sampled_from([0.1, 1.0, 1e6])
)
@settings(max_examples=15, deadline=None)
def test_rule_is_the_naive_one(optimizer, seed, mu, clip):
    theta, anchor, control = arrays(seed), arrays(seed + 1), arrays(seed + 2, 0.1)
    mask = {n: (v > 0).astype(np.float32) for n, v in arrays(seed + 3).items()}
    state, reference_state, reference = {}, {}, theta
    for step in range(3):
        g = arrays(seed + 10 + step)
        theta, state = u.update(
            theta, g, optimizer, state, clip_norm=clip, anchor=anchor, mu=mu, control=control, mask=mask
        )
        reference = naive(reference, g, optimizer, reference_state, anchor, mu, control, mask, clip)
    for name in SHAPES:
        np.testing.assert_allclose(theta[name], reference[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_arguments_are_left_alone_and_neutral_terms_change_no_bit(optimizer):
    theta, g = arrays(1), arrays(2)
    copies = {n: v.copy() for n, v in theta.items()}
    plain, state = u.update(theta, g, optimizer, {})
    frozen = {n: v.copy() for n, v in state.items()}
    u.update(plain, g, optimizer, state)
    assert equal(theta, copies)
    assert all(np.array_equal(frozen[n], state[n]) for n in state)
    neutral = {"anchor": arrays(3), "mu": 0.0, "control": ones(0), "mask": ones(1), "clip_norm": 1e9}
    assert equal(plain, u.update(theta, g, optimizer, {}, **neutral)[0])
    assert equal(plain, u.update(theta, g, optimizer, {}, anchor=arrays(3), mu=0.0, implicit=True)[0])
    assert all(v.dtype == np.float32 for v in plain.values())
    assert int(u.update(plain, g, optimizer, state)[1]["step"][0]) == 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_masked_entries_keep_their_value(optimizer):
    theta = arrays(4)
    theta["b"][1] = 0
    mask = {n: (np.arange(v.size).reshape(v.shape) % 2 == 0).astype(np.float32) for n, v in theta.items()}
    new, state = theta, {}
    for step in range(5):
        new, state = u.update(
            new, arrays(step), optimizer, state, mask=mask, anchor=arrays(9), mu=1.0, implicit=step % 2 == 0
        )
    for name in SHAPES:
        assert np.array_equal(new[name][mask[name] == 0], theta[name][mask[name] == 0])
        assert (new[name] != theta[name])[mask[name] == 1].all()
    assert new["b"][1] == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_huge_mu_leaves_the_anchor_unmoved(optimizer):
    theta = anchor = arrays(5)
    state = {}
    for step in range(4):
        theta, state = u.update(theta, arrays(step), optimizer, state, anchor=anchor, mu=1e20, implicit=True)
    for name in SHAPES:
        np.testing.assert_allclose(theta[name], anchor[name], rtol=1e-6)


def test_mu_is_in_the_gradient_not_a_scaling_of_the_update():
    theta, g = arrays(1), arrays(2)
    one, _ = u.update(theta, g, Sgd(lr=0.1), {}, anchor=theta, mu=5.0)
    assert equal(one, u.update(theta, g, Sgd(lr=0.1), {})[0])  # at the anchor the term is zero
    two, _ = u.update(one, g, Sgd(lr=0.1), {}, anchor=theta, mu=5.0)
    for name in SHAPES:
        expected = one[name] - 0.1 * (g[name] + 5 * (one[name] - theta[name]))
        np.testing.assert_allclose(two[name], expected, rtol=1e-5, atol=1e-6)


def test_implicit_step_is_the_proximal_operator():
    """It minimises |z - y|^2 / (2 lr) + mu |z - anchor|^2 / 2 at y = theta - lr g."""
    theta, g, anchor = arrays(1), arrays(2), arrays(3)
    new, _ = u.update(theta, g, Sgd(lr=0.1), {}, anchor=anchor, mu=5.0, implicit=True)
    for name in SHAPES:
        y = theta[name] - 0.1 * g[name]
        np.testing.assert_allclose(new[name], (y + 0.5 * anchor[name]) / 1.5, rtol=1e-5, atol=1e-6)


def test_clip_bounds_the_global_norm_and_keeps_the_direction():
    g = arrays(7, 100)
    clipped = u.clip(g, 2.0)
    assert u.global_norm(clipped) == pytest.approx(2, rel=1e-6)
    ratio = clipped["b"] / g["b"]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert equal(u.clip(g, None), g)
    assert equal(u.clip(ones(0), 1.0), ones(0))
    assert u.global_norm({}) == 0
    assert u.global_norm({"x": np.full(3, 1e30, np.float32)}) == pytest.approx(3**0.5 * 1e30)


def test_norm_is_one_accumulator_in_order_of_name():
    g = arrays(8)
    total = 0.0
    for name in ("a.w", "b", "s"):
        for x in g[name].ravel():
            total += float(x) * float(x)
    assert u.global_norm(g) == math.sqrt(total)


@given(base=st.floats(0, 1), exponent=st.integers(0, 5000))
def test_integer_power(base, exponent):
    assert u.integer_power(base, exponent) == pytest.approx(base**exponent, rel=1e-10, abs=1e-300)


def test_mix_toward_and_minus():
    x, y = arrays(1), arrays(2)
    assert equal(u.mix(x, y, 1.0), x)
    assert equal(u.mix(x, y, 0.0), y)
    assert equal(u.toward(x, y, 1), y)
    assert equal(u.toward(x, y, 0.0), x)
    np.testing.assert_allclose(u.mix(x, y, 0.25)["b"], 0.25 * x["b"] + 0.75 * y["b"], rtol=1e-6)
    np.testing.assert_allclose(u.minus(x, y, 0.5)["b"], x["b"] - 0.5 * y["b"], rtol=1e-6)


def test_mu_per_tensor():
    theta, anchor = arrays(1), arrays(2)
    mu = {"a.w": np.full((2, 3), 2, np.float32), "b": np.float32([3]), "s": np.float32([0])}
    new, _ = u.update(theta, ones(0), Sgd(lr=0.1), {}, anchor=anchor, mu=mu)
    for name, m in (("a.w", 2), ("b", 3), ("s", 0)):
        np.testing.assert_allclose(new[name], theta[name] - 0.1 * m * (theta[name] - anchor[name]), rtol=1e-5)


def test_what_is_not_finite_or_does_not_fit_is_named():
    theta, g = arrays(1), arrays(2)
    with pytest.raises(NonFiniteError, match="'b'"):
        u.update({**theta, "b": np.full(3, 3e38, np.float32)}, {**g, "b": -ones(3e38)["b"]}, Sgd(lr=1.0), {})
    with pytest.raises(NonFiniteError, match=r"a\.w"):
        u.mean_gradients({**g, "a.w": np.full((2, 3), np.inf, np.float32)}, 1.0)
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(NonFiniteError, match="weight"):
            u.mean_gradients(g, weight)
    for wrong in (np.zeros(2, np.float32), np.zeros(3, np.float64)):
        with pytest.raises(TensorMismatchError, match="anchor 'b'"):
            u.update(theta, g, Sgd(lr=1.0), {}, anchor={**g, "b": wrong}, mu=1.0)
    with pytest.raises(TensorMismatchError, match="control has no tensor 's'"):
        u.update(theta, g, Sgd(lr=1.0), {}, control={n: v for n, v in g.items() if n != "s"})
