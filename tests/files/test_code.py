"""A digest of what functions and classes do: by their code and what it reads, not by how it is written."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.files.code import code_digest, is_users
from pfl_mobile.plan.optimizers import Sgd

FACTOR = 2.0


def digest(thing):
    return code_digest(thing, repr)


def made(source, **names):
    space = {"__name__": __name__, **names}
    exec(source, space)
    return space["f"]


def test_comments_lines_and_the_text_of_a_docstring_do_not_count():
    plain = made('def f(x):\n    """One more."""\n    return x + 1\n')
    written = made('def f(x):\n    """Adds."""\n\n    # one\n    return x + 1\n')
    assert digest(plain) == digest(written)


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return x - 1\n",
        "def f(x, y=1):\n    return x + 1\n",
        "def f(y):\n    return y + 1\n",
        "def f(x):\n    return [i + 1 for i in (x,)][0]\n",
    ],
)
def test_other_code_is_told_apart(source):
    assert digest(made("def f(x):\n    return x + 1\n")) != digest(made(source))


def test_globals_and_functions_that_are_read_count():
    source = "def f(x):\n    return x * FACTOR\n"
    assert digest(made(source, FACTOR=2.0)) != digest(made(source, FACTOR=3.0))
    assert digest(made(source, FACTOR=2.0, OTHER=1)) == digest(made(source, FACTOR=2.0, OTHER=2))
    call = "def f(x):\n    return g(x)\n"
    one, two = (made(f"def f(x):\n    return x + {n}\n") for n in (1, 2))
    assert digest(made(call, g=one)) != digest(made(call, g=two))


def test_what_closures_and_defaults_hold_counts():
    def adder(n):
        return lambda x: x + n

    assert digest(adder(1)) == digest(adder(1))
    assert digest(adder(1)) != digest(adder(2))
    assert digest(adder(np.zeros(2))) != digest(adder(np.ones(2)))


def test_functions_that_call_each_other_end():
    space = {"__name__": __name__}
    exec("def f(x):\n    return g(x)\ndef g(x):\n    return f(x)\n", space)
    assert digest(space["f"]) == digest(space["f"])


def test_methods_count_with_what_their_object_holds():
    class Scaled:
        def __init__(self, by):
            self.by = by

        def run(self, x):
            return x * self.by

    assert digest(Scaled(1).run) == digest(Scaled(1).run)
    assert digest(Scaled(1).run) != digest(Scaled(2).run)


def test_which_classes_are_a_users():
    class Mine:
        pass

    assert is_users(Mine)
    assert not is_users(Sgd)
    assert not is_users(dict)
    assert not is_users(np.ndarray)
