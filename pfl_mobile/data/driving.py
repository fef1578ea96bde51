"""Generated drives: from the road ahead to the angle of the steering wheel, for drivers with a style of their own.

No public data of steering names enough drivers, so these are **generated**; figures on them show what a method can do
with such a structure, not how well a car would drive.

Shared by all: how a wheel angle follows from the curvature of the road. A vehicle with wheelbase L that understeers by
K needs the angle L (1 + K v^2) curvature at speed v, times the ratio of its steering gear; these three are those of its
class (car, van, lorry). Different by driver: how far ahead it looks (10 to 60 m, so which curvature counts), how hard
it corrects an offset and a wrong heading, where in the lane it likes to be, how much it cuts corners, how fast it
drives and how steady its hand is. A row knows nothing of the driver or the vehicle: that is for a personal model.

A drive is a road of points 10 m apart whose curvature, and the driver's offset and heading, wander smoothly; they do
not follow from the angles (the loop is not closed), which keeps rows cheap and is all that a regression sees.

Rows, in the order of driving: ``x`` float32 [R, 7] (:data:`COLUMNS`), ``labels`` float32 [R, 1], the angle in
radians; ``weight`` float32 [R] of ones. Groups: the classes of vehicles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfl_mobile.data.generated import check, groups_of, kind_of, kinds, of_user, parted
from pfl_mobile.data.populations import GeneratedPopulation
from pfl_mobile.data.registry import Generator, register
from pfl_mobile.rows import Rows

VEHICLES = ("car", "van", "lorry")
#: What the columns of ``x`` are; curvature in 1/100 m, speed in (v - 20 m/s) / 10, offset in m, heading in 0.1 rad.
COLUMNS = (
    "curvature in 10 m", "curvature in 20 m", "curvature in 40 m", "curvature in 60 m", "speed", "offset", "heading",
)  # fmt: skip

_SHARES = (0.6, 0.25, 0.15)
# By class: wheelbase in m, understeer in s^2/m^2, steering ratio.
_WHEELBASE, _UNDERSTEER, _RATIO = (2.7, 3.6, 5.5), (0.0015, 0.002, 0.003), (15.0, 17.0, 20.0)
_AHEAD = np.array([1, 2, 4, 6])  # points of 10 m
_SPACING = 10.0


@dataclass(frozen=True)
class Driver:
    """Makes the drives of a driver; see the module.

    Args:
        mean: rows of a driver, on average.
        test: fraction of a driver's rows, the newest.
        seed: of everything.
    """

    mean: float
    test: float
    seed: int

    def __call__(self, index: int) -> tuple[Rows, Rows]:
        """(train, test) of one driver."""
        vehicle = kind_of(self.seed, index, _SHARES)
        draw = of_user(self.seed, index)
        size = max(int(draw.lognormal(np.log(self.mean) - 0.08, 0.4)), 20)
        look = draw.uniform(10, 60)
        counts = np.exp(-0.5 * ((_AHEAD * _SPACING - look) / 12) ** 2)
        counts /= counts.sum()
        corrects, straightens = draw.uniform(0.005, 0.03), draw.uniform(0.1, 0.5)
        likes, cuts = draw.normal(0, 0.25), draw.uniform(0, 60)
        hurry, grip = draw.normal(22, 4), draw.uniform(1.5, 4.0)  # m/s, m/s^2
        hand = draw.uniform(0.005, 0.03)  # rad

        curvature = _wander(draw, size + _AHEAD[-1], 1 / 150, 8)
        ahead = np.stack([curvature[a : a + size] for a in _AHEAD], axis=1)
        speed = np.minimum(hurry, np.sqrt(grip / np.maximum(np.abs(curvature[:size]), 1e-4)))
        offset = likes + _wander(draw, size, 0.3, 5)
        heading = _wander(draw, size, 0.02, 3)
        bend = ahead @ counts
        wheels = (
            _WHEELBASE[vehicle] * (1 + _UNDERSTEER[vehicle] * speed**2) * bend
            - corrects * (offset - likes - cuts * bend)
            - straightens * heading
        )
        angle = _RATIO[vehicle] * wheels + draw.normal(0, hand, size)
        x = np.column_stack([100 * ahead, (speed - 20) / 10, offset, 10 * heading])
        return parted({"x": x.astype(np.float32), "labels": angle.astype(np.float32)[:, None]}, self.test)


def _wander(draw: np.random.Generator, size: int, spread: float, length: int) -> np.ndarray:
    """Smooth noise with standard deviation ``spread`` that forgets itself after some ``length`` points."""
    kernel = np.exp(-np.arange(4 * length) / length)
    kernel *= spread / np.sqrt((kernel**2).sum())
    return np.convolve(draw.standard_normal(size + len(kernel) - 1), kernel, mode="valid")


def build(*, users: int = 60, mean: float = 400.0, test: float = 0.2, seed: int = 0) -> GeneratedPopulation:
    """The drivers.

    Args:
        users: how many; driver i is the same whatever their number is.
        mean: rows of a driver, on average.
        test: fraction of a driver's rows, the newest.
        seed: of everything.

    Raises:
        ConfigError: fewer than 2 users, or a number that is not above 0.
    """
    check(users, test, mean=mean)
    groups = groups_of(kinds(seed, users, _SHARES), VEHICLES)
    return GeneratedPopulation("driving", users, Driver(mean, test, seed), groups)


DATASET = register(
    Generator(
        name="driving",
        summary="generated: drivers with a steering style of their own, from the road ahead to the angle",
        build=build,
    )
)
