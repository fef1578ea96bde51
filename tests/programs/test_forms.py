"""Forms of operators with any options equal PyTorch: loss and gradients of the traced program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfl_mobile.errors import ExportError
from tests.exporters.operators.cases import Case
from tests.exporters.operators.check import TOLERANCE, checked

few = settings(max_examples=8, deadline=None)


def holds(case: Case) -> None:
    made = checked(case)
    assert made.error_of(made.program.run(made.program.inputs)) <= TOLERANCE


def equal(function: Callable[..., Any], *shapes: tuple[int, ...], positive: bool = False) -> None:
    case = Case("", "drawn", function, shapes, positive)
    try:
        found = case.function(*case.inputs())
    except (RuntimeError, ValueError):
        assume(False)  # PyTorch has no such combination
    assume(all(output.numel() for output in (found if isinstance(found, list) else [found])))
    holds(case)


@few
@given(st.data())
def test_pooling(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))
    shape = (2, 2, *data.draw(st.lists(st.integers(3, 7), min_size=dims, max_size=dims)))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))
    options: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": data.draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims)),
        "padding": [data.draw(st.integers(0, k // 2)) for k in kernel],
        "ceil_mode": data.draw(st.booleans()),
    }
    if data.draw(st.booleans()):
        options["count_include_pad"] = data.draw(st.booleans())
        pool = getattr(F, f"avg_pool{dims}d")
    else:
        options["dilation"] = data.draw(st.integers(1, 2))
        pool = getattr(F, f"max_pool{dims}d")
    equal(lambda x: pool(x, **options), shape)


@few
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=2, max_size=3), st.booleans())
def test_adaptive_pooling(sizes: list[tuple[int, int]], largest: bool) -> None:
    name = f"adaptive_{'max' if largest else 'avg'}_pool{len(sizes)}d"
    equal(lambda x: getattr(F, name)(x, [new for _, new in sizes]), (2, 2, *(old for old, _ in sizes)))


@few
@given(
    st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic", "area"]),
    st.tuples(st.integers(1, 6), st.integers(2, 6)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.booleans(),
)
def test_resizing(mode: str, old: tuple[int, int], new: tuple[int, int], corners: bool) -> None:
    aligned = corners if mode.startswith("bi") else None
    equal(lambda x: F.interpolate(x, new, mode=mode, align_corners=aligned), (2, 2, *old))


@few
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    dims, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    options: dict[str, Any] = {
        "stride": data.draw(st.integers(1, 3)),
        "padding": data.draw(st.integers(0, 2)),
        "dilation": data.draw(st.integers(1, 2)),
        "groups": groups,
    }
    sizes = data.draw(st.lists(st.integers(2, 6), min_size=dims, max_size=dims))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))
    if data.draw(st.booleans()):
        options["output_padding"] = data.draw(st.integers(0, 2))
        call = getattr(F, f"conv_transpose{dims}d")
    else:
        call = getattr(F, f"conv{dims}d")
    equal(lambda x, w: call(x, w, **options), (2, 2 * groups, *sizes), (2 * groups, 2, *kernel))


@few
@given(st.data(), st.sampled_from(["sum", "mean", "prod", "amax", "amin"]), st.booleans())
def test_reductions_by_index(data: st.DataObject, reduce: str, include_self: bool) -> None:
    rows, columns, dim = (
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(0, 1)),
    )
    wide = (data.draw(st.integers(1, 6)), columns) if dim == 0 else (rows, data.draw(st.integers(1, 6)))
    most = (rows, columns)[dim] - 1
    index = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.integers(0, most), min_size=wide[1], max_size=wide[1]),
                min_size=wide[0],
                max_size=wide[0],
            )
        )
    )
    equal(
        lambda x, y: x.scatter_reduce(dim, index, y, reduce, include_self=include_self),
        (rows, columns),
        wide,
        positive=True,
    )


@few
@given(st.data(), st.sampled_from(["sum", "mean", "max"]), st.booleans(), st.booleans())
def test_bags(data: st.DataObject, mode: str, last: bool, padded: bool) -> None:
    words = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    begins = sorted(data.draw(st.lists(st.integers(0, len(words)), max_size=3)))
    offsets = torch.tensor([0, *begins, *([len(words)] if last else [])])
    padding = 1 if padded else None
    equal(
        lambda w: F.embedding_bag(
            torch.tensor(words), w, offsets, mode=mode, include_last_offset=last, padding_idx=padding
        ),
        (5, 3),
    )


@few
@given(st.data())
def test_ctc(data: st.DataObject) -> None:
    steps, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    targets = data.draw(
        st.lists(st.lists(st.integers(1, 3), min_size=width, max_size=width), min_size=2, max_size=2)
    )
    ends = data.draw(st.lists(st.integers(1, steps), min_size=2, max_size=2))
    spoken = data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2))
    equal(
        lambda x: F.ctc_loss(
            x.log_softmax(-1),
            torch.tensor(targets),
            torch.tensor(ends),
            torch.tensor(spoken),
            reduction="none",
            zero_infinity=True,
        ),
        (steps, 2, 4),
    )


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=2), st.sampled_from(["backward", "forward", "ortho"]))
def test_spectra(sizes: list[int], norm: str) -> None:
    dims = list(range(1, 1 + len(sizes)))

    def function(x: Tensor) -> list[Tensor]:
        z = torch.fft.rfftn(x, dim=dims, norm=norm)
        back = torch.fft.irfftn(z * (1 + 0.5j), s=sizes, dim=dims, norm=norm)
        full = torch.fft.fftn(x, dim=dims, norm=norm)
        return [
            z.real,
            z.imag,
            back,
            (full * full.conj()).real,
            torch.view_as_real(full / (z.abs().sum() + 1)),
        ]

    equal(function, (2, *sizes))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(torch.arange(6) == 2, 0.0, x).prod(-1),
        lambda x: torch.where(torch.arange(6) == 2, 0.0, x).cumprod(-1),
        lambda x: torch.where(torch.arange(6) < 3, 0.0, x).prod(),
        lambda x: x.mT.as_strided((2, 3), (1, 4), 2),
        lambda x: x[1:].as_strided((2, 3), (6, 1), 6),
        lambda x: torch.sort(torch.round(x), stable=True, dim=0).values * torch.arange(4.0)[:, None] + x,
        lambda x: torch.linalg.inv(x[:3, :3] - torch.diag(torch.diag(x[:3, :3]))),  # a pivot of zero
        lambda x: torch.linalg.solve(x[:3, :3], x[0, :3]),
        lambda x: torch.linalg.det(x[:4, :4]),
        lambda x: x.logcumsumexp(-1) + x.cummin(-1).values,
        lambda x: F.gaussian_nll_loss(x, x * 0.5, x.abs() * 1e-3, eps=1e-3, full=True, reduction="sum"),
        lambda x: torch.bucketize(x.detach(), torch.tensor([-1.0, 0.0, 1.0]), right=True) * x,
    ],
)
def test_at_the_edges(function: Callable[[Tensor], Tensor]) -> None:
    holds(Case("", "drawn", function, ((4, 6),)))


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: torch.linalg.inv(x @ x.mT + torch.eye(20)), "the inverse of a matrix of 20 rows"),
        (
            lambda x: torch.view_as_real(torch.sin(torch.fft.fft(x))),
            "of complex numbers has no form in real ones",
        ),
    ],
)
def test_what_has_no_form_is_named(function: Callable[[Tensor], Tensor], what: str) -> None:
    with pytest.raises(ExportError, match=what):
        checked(Case("", "drawn", function, ((20, 4),)))
