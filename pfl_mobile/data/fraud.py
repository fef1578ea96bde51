"""Generated card payments: each customer has habits of its own, fraudsters the same tricks everywhere.

No public data names the customers of card payments, so these are **generated**; figures on them show what a method
can do with such a structure, not what it would do for a bank.

Different by customer: which kinds of shops, how much, how widely it varies, at what hour, how far from home and how
often. Customers of one segment (student, family, business, retiree) are alike but not equal. Rows hold payments as
they are, not compared with the customer's past, so what is usual is for a personal model to learn: a business
traveller pays far from home, a student at three in the morning.

Shared by all: a fraction ``rate`` of the payments is fraud, by one of three tricks. Trying a card: a tiny amount, on
line, a minute after the payment before. A copied card: in a shop hundreds of kilometres away, half an hour
after the payment before. A stolen card: electronics or jewellery, a large amount, at night.

Rows, oldest first: ``x`` float32 [R, 15] (:data:`COLUMNS`), ``labels`` int64 [R], 1 for fraud, ``weight`` float32 [R]
of ones. Groups: the segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfl_mobile.data.generated import check, groups_of, kind_of, kinds, of_user, parted
from pfl_mobile.data.populations import GeneratedPopulation
from pfl_mobile.data.registry import Generator, register
from pfl_mobile.errors import ConfigError
from pfl_mobile.rows import Rows

SEGMENTS = ("student", "family", "business", "retiree")
SHOPS = ("food", "restaurant", "travel", "fashion", "electronics", "jewellery", "online service", "health")
#: What the columns of ``x`` are.
COLUMNS = (
    "log amount", "sin hour", "cos hour", "weekend", "online", "log distance", "log gap",
    *(f"shop {s}" for s in SHOPS),
)  # fmt: skip

_SHARES = (0.3, 0.35, 0.15, 0.2)
_SHOP_WEIGHTS = np.array(
    [
        [4, 5, 1, 2, 1, 0.1, 5, 0.5],
        [8, 2, 1, 2, 1, 0.2, 2, 1.5],
        [2, 5, 6, 1, 1, 0.5, 2, 0.5],
        [7, 2, 1, 1, 0.4, 0.3, 0.5, 4],
    ]
)
# By segment: mean of the log amount (in euros), hour of the day, log distance (km), payments a day.
_AMOUNT, _HOUR = (2.3, 3.4, 3.9, 3.0), (20.0, 15.0, 14.0, 11.0)
_DISTANCE, _OFTEN = (1.5, 1.8, 4.5, 1.0), (2.0, 2.5, 3.5, 1.2)
# By kind of shop: what a payment there adds to the log amount, and how often it is on line.
_SHOP_AMOUNT = np.array([0.0, 0.1, 1.2, 0.8, 1.3, 1.8, -0.6, 0.2])
_ONLINE = np.array([0.05, 0.1, 0.6, 0.5, 0.5, 0.1, 1.0, 0.2])


@dataclass(frozen=True)
class Customer:
    """Makes the payments of a customer; see the module.

    Args:
        mean: payments of a customer, on average.
        rate: fraction of them that are fraud, on average.
        test: fraction of a customer's payments, the newest.
        seed: of everything.
    """

    mean: float
    rate: float
    test: float
    seed: int

    def __call__(self, index: int) -> tuple[Rows, Rows]:
        """(train, test) of one customer."""
        segment = kind_of(self.seed, index, _SHARES)
        draw = of_user(self.seed, index)
        size = max(int(draw.lognormal(np.log(self.mean) - 0.08, 0.4)), 20)
        habit = draw.dirichlet(_SHOP_WEIGHTS[segment] * 1.5)
        shop = draw.choice(len(SHOPS), size, p=habit)
        level, spread = draw.normal(_AMOUNT[segment], 0.6), draw.uniform(0.3, 0.8)
        amount = level + _SHOP_AMOUNT[shop] + draw.normal(0, spread, size)
        usual_hour = draw.normal(_HOUR[segment], 2.5)
        hour = draw.normal(usual_hour, draw.uniform(1.5, 4.0), size)
        distance = draw.normal(draw.normal(_DISTANCE[segment], 0.7), 1.0, size)
        online = draw.random(size) < _ONLINE[shop]
        often = _OFTEN[segment] * draw.lognormal(0, 0.4)
        gap = draw.exponential(1440 / often, size)  # minutes
        day = np.cumsum(gap) / 1440 + draw.integers(7)
        weekend = day % 7 >= 5

        fraud = draw.random(size) < self.rate
        trick = np.where(fraud, draw.integers(0, 3, size), -1)
        tried, copied, stolen = (trick == t for t in range(3))
        shop = np.select([tried, stolen], [6, np.where(draw.random(size) < 0.7, 4, 5)], shop)
        amount = np.select(
            [tried, copied, stolen],
            [draw.normal(0.3, 0.4, size), draw.normal(4.5, 0.8, size), draw.normal(6.0, 0.5, size)],
            amount,
        )
        hour = np.where(stolen, draw.uniform(0, 6, size), hour)
        distance = np.where(copied, draw.normal(6.0, 0.5, size), distance)
        online = np.where(tried, True, np.where(copied, False, online))
        gap = np.select([tried, copied], [draw.exponential(1, size), draw.exponential(30, size)], gap)
        turn = hour / 24 * 2 * np.pi
        x = np.stack(
            [
                (amount - 3) / 1.5,
                np.sin(turn),
                np.cos(turn),
                weekend,
                online,
                np.where(online, 0, distance) / 3,
                np.log1p(gap) / 5,
                *np.eye(len(SHOPS))[shop].T,
            ],
            axis=1,
        )
        return parted({"x": x.astype(np.float32), "labels": fraud.astype(np.int64)}, self.test)


def build(
    *, users: int = 200, mean: float = 300.0, rate: float = 0.03, test: float = 0.2, seed: int = 0
) -> GeneratedPopulation:
    """The customers.

    Args:
        users: how many; customer i is the same whatever their number is.
        mean: payments of a customer, on average.
        rate: fraction of them that are fraud.
        test: fraction of a customer's payments, the newest.
        seed: of everything.

    Raises:
        ConfigError: fewer than 2 users, a rate of 1 or more, or a number that is not above 0.
    """
    check(users, test, mean=mean, rate=rate)
    if rate >= 1:
        raise ConfigError(f"rate={rate}", mend="give a rate below 1")
    groups = groups_of(kinds(seed, users, _SHARES), SEGMENTS)
    return GeneratedPopulation("fraud", users, Customer(mean, rate, test, seed), groups)


DATASET = register(
    Generator(
        name="fraud",
        summary="generated: card payments of customers with habits of their own, rare frauds with shared tricks",
        build=build,
    )
)
