"""Each kind of what cannot be exported is refused with its layer, its line and a way out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pfl_mobile import ClassificationTask, CustomTask, Head, LoRA, Task, personalize
from pfl_mobile.errors import ExportError, PflError
from pfl_mobile.programs.refusals import RAISED, explained
from pfl_mobile.programs.trace import trace_programs

HERE = re.escape("test_refusals.py:")


class Inner(nn.Module):
    """Calls a function of the test's, in the middle of a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, y: Tensor) -> Any:
        return self.function(y)


class Net(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.inner, self.h = nn.Linear(8, 12), Inner(function), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.inner(self.a(x)))


def trace(net: nn.Module, target: str = "a", task: Task | None = None, **batch: Tensor) -> None:
    rows = {"x": torch.randn(4, 8), "labels": torch.tensor([0, 1, 2, 0]), "weight": torch.ones(4), **batch}
    task = task or ClassificationTask(3)
    trace_programs(
        personalize(net.eval(), [Head(target)]), task, rows, {name: rows[name][:1] for name in task.inputs}
    )


def refusal(net: nn.Module, **options: Any) -> PflError:
    with pytest.raises(PflError) as caught:
        trace(net, **options)
    return caught.value


# -- functions of a tensor [4, 12] that no program can have


def branches(y: Tensor) -> Tensor:
    if y.sum() > 0:
        return y
    return -y


def loops(y: Tensor) -> Tensor:
    while (y.abs() > 1).any():
        y = y / 2
    return y


def counts(y: Tensor) -> Tensor:
    for _ in range(int(y.abs().max()) + 1):
        y = y + 0.1
    return y


def asserts(y: Tensor) -> Tensor:
    assert (y.abs() < 1000).all()
    return y


def formats(y: Tensor) -> Tensor:
    str(f"{y.mean():.3f}")
    return y


def indexes(y: Tensor) -> Tensor:
    return y * [1.0, 2.0][y.argmax() % 2]


def slices(y: Tensor) -> Tensor:
    return y + y[:, : y[0].argmax() + 1].sum(1, keepdim=True)


def overwrites(y: Tensor) -> Tensor:
    z = y.exp()
    z += 1
    return z


def autocasts(y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (y @ torch.eye(12)).float()


def packs_numbers(y: Tensor) -> Tensor:
    return packs_at_once(y.view(4, 3, 4), (y[:, 0] > 0).to(torch.int64) + 1)


def packs_at_once(y: Tensor, n: Tensor) -> Tensor:
    return nn.utils.rnn.pack_padded_sequence(y, n.tolist(), True, enforce_sorted=False).data


def maps(y: Tensor) -> Tensor:
    return torch.cond(y.sum() > 0, lambda v: v * 2, lambda v: v * 3, (y,))


with torch.inference_mode():
    ONES = torch.ones(12)


def recomputes(y: Tensor) -> Tensor:
    return checkpoint(torch.tanh, y, use_reentrant=True)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * float(x.max())


SEEN: list[tuple[Callable[[Tensor], Tensor], str, str]] = [
    (
        branches,
        r"a branch depends on values of a tensor \(y\.sum\(\) > 0\).*: if y\.sum\(\) > 0:",
        r"torch\.where",
    ),
    (lambda y: y if y.sum() > 0 else -y, r"a branch depends on values", r"torch\.where"),
    (lambda y: torch.stack([r for r in y if r.sum() < 9]), r"a branch depends on values", r"torch\.where"),
    (loops, r"a loop goes on for as long as values.*: while", r"fixed number of times"),
    (counts, r"a whole number of Python .*\(int\(y\.abs\(\)\.max\(\)\)\)", r"same steps"),
    (asserts, r"an assertion depends on values", r"is_exporting\(\)"),
    (formats, r"values of a tensor are taken into Python", r"\.item\(\)"),
    (
        lambda y: y * y.max().item(),
        r"a number of Python is made .*\(y\.max\(\)\.item\(\)\)",
        r"y \* y\.max\(\)",
    ),
    (lambda y: y * math.exp(y.max()), r"a number of Python is made .*math\.exp", r"the tensor itself"),
    (lambda y: y * y.max().tolist(), r"a number of Python is made .*tolist\(\)", r"the tensor itself"),
    (
        lambda y: y + torch.from_numpy(np.sin(y.detach().numpy())),
        r"NumPy computes with values",
        r"PyTorch's operators",
    ),
    (
        lambda y: y * torch.tensor(np.max(np.asarray(y.detach()))),
        r"NumPy computes with values",
        r"PyTorch's operators",
    ),
    (lambda y: y * max(y[0]), r"Python compares values .*\(max\(y\[0\]\)\)", r"the tensor's own"),
    (indexes, r"used as an index of Python", r"gather"),
    (slices, r"used as an index of Python", r"gather"),
    (
        lambda y: y + F.one_hot(y.argmax(-1)).sum(1, keepdim=True),
        r"one_hot without num_classes",
        r"num_classes=",
    ),
    (packs_numbers, r"packed by lengths that leave their tensor \(n\.tolist\(\)\)", r"without \.tolist\(\)"),
    (
        lambda y: y + y.masked_select(y > 0).mean(),
        r"a shape depends on values \(aten\.masked_select",
        r"mask",
    ),
    (lambda y: y + torch.nonzero(y > 0).sum(), r"a shape depends on values \(aten\.nonzero", r"mask"),
    (lambda y: y + y[y > 0].mean(), r"a shape depends on values", r"torch\.where\(mask"),
    (
        lambda y: y + torch.unique(y.detach().round()).sum(),
        r"a shape depends on values \(aten\._unique2",
        r"mask",
    ),
    (lambda y: F.dropout(y, 0.1), r"random numbers are drawn .*dropout", r"training=self\.training"),
    (F.gumbel_softmax, r"random numbers are drawn \(aten\.exponential", r"an entry of the batch"),
    (
        lambda y: y + torch.rand_like(y),
        r"random numbers are drawn \(aten\.rand_like",
        r"an entry of the batch",
    ),
    (lambda y: torch.distributions.Normal(y, 1.0).rsample(), r"random numbers are drawn", r"rsample"),
    (lambda y: (y.half() * 2).float(), r"float16 is computed with \(aten\.mul", r"float32"),
    (autocasts, r"bfloat16 is computed with", r"autocast"),
    (lambda y: y @ torch.eye(12, dtype=torch.float64), r"number formats do not fit", r"float32 everywhere"),
    (lambda y: y + torch.zeros(12, device="meta"), r"another device than the CPU", r"model\.cpu\(\)"),
    (overwrites, r"overwritten in place that the backward pass needs", r"x\.clone\(\)"),
    (Doubled.apply, r"a number of Python is made .*: return grads\[0\] \* float", r"the tensor itself"),
    (lambda y: y + torch.unique(y).sum(), r"no derivative of an operator .*_unique2", r"\.detach\(\)"),
    (lambda y: torch.sparse.mm(torch.eye(4).to_sparse(), y), r"a tensor or a gradient is sparse", r"dense"),
    (
        lambda y: y.view(4, 3, 4).flatten(1),
        r"the example's 4 rows and fails with a batch of 1",
        r"x\.shape\[0\]",
    ),
    (
        lambda y: torch.cat([y, torch.zeros(4, 1)], 1)[:, :12],
        r"fails with a batch of 1",
        r"torch\.zeros\(len",
    ),
    (lambda y: y + torch.zeros(4, 12), r"gives 4 rows for a batch of 1.*is fixed", r"torch\.zeros\(len"),
    (lambda y: y.squeeze().softmax(1), r"squeeze\(\) takes the axis of a single row away", r"squeeze\(-1\)"),
    (lambda y: y * ONES, r"made under torch\.inference_mode\(\)", r"x\.clone\(\)"),
    (recomputes, r"use_reentrant=True", r"use_reentrant=False"),
    (lambda y: y[:, :7], r"RuntimeError: .*fails in plain PyTorch too", r"run on the example batch first"),
]


@pytest.mark.parametrize(("function", "words", "mend"), SEEN)
def test_a_refusal_says_what_where_and_what_works(
    function: Callable[[Tensor], Tensor], words: str, mend: str
) -> None:
    error = refusal(Net(function))
    assert re.search(words, error.message), error.message
    assert re.search(mend, error.mend), error.mend
    # the line of the function that is to blame, in its layer; where the layer behind it fails, that one
    assert re.search(rf"in layer '(inner|h)' \(.*{HERE}\d+: |in layer 'inner'", error.message), error.message
    assert "0x" not in error.message
    assert "\x1b" not in error.message


def goes_on(y: Tensor) -> Tensor:
    from torch._higher_order_ops.while_loop import while_loop

    return while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, v * 2), (torch.tensor(0), y))[1]


@pytest.mark.parametrize("function", [maps, goes_on])
def test_control_flow_as_an_operator_is_named(function: Callable[[Tensor], Tensor]) -> None:
    error = refusal(Net(function))
    assert "control flow" in error.message
    assert "in layer 'inner'" in error.message
    assert "torch.where" in error.mend


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.distributions.Normal(y, y.exp()).log_prob(torch.zeros(12)),
        lambda y: torch.distributions.Categorical(logits=y).entropy().unsqueeze(1) * y,
        lambda y: F.gaussian_nll_loss(y, torch.zeros_like(y), y.exp(), reduction="none"),
        lambda y: F.poisson_nll_loss(y, y.exp(), reduction="none"),
        lambda y: (
            F.cosine_embedding_loss(y, y.flip(0), torch.ones(len(y)), reduction="none").unsqueeze(1) * y
        ),
        lambda y: y.masked_fill(y > 0, 0.0) + y[:, torch.tensor([True, False] * 6)].sum(1, keepdim=True),
        lambda y: y.clone().index_put_((y.detach() > 0,), torch.tensor(0.5)),
        lambda y: (
            y * 2 if torch.compiler.is_exporting() else y * float(y.detach().sum() / y.detach().sum()) * 2
        ),
    ],
)
def test_what_only_looks_as_if_it_depended_on_values_is_traced(function: Callable[[Tensor], Tensor]) -> None:
    trace(Net(function))


@pytest.mark.slow
def test_compiled_functions_run_as_they_were_written() -> None:
    def compiler(graph: torch.fx.GraphModule, _examples: object) -> Callable[..., Any]:
        """Stands for the usual one, which takes seconds to import and to run: its code cannot be traced either."""

        def code(*inputs: Tensor) -> Any:
            assert not torch.compiler.is_exporting()
            return graph(*inputs)

        return code

    @torch.compile(backend=compiler)
    def twice(y: Tensor) -> Tensor:
        return y * 2

    trace(Net(twice))


def test_inputs_that_forward_does_not_get_are_named() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.a(x * mask)

    error = refusal(Masked())
    assert "missing 1 required positional argument: 'mask'" in error.message
    assert "inputs=('x', 'mask')" in error.mend
    error = refusal(Masked(), task=ClassificationTask(3, inputs=("x", "weight", "x")))
    assert "takes 3 positional arguments but 4 were given" in error.message
    trace(Masked(), task=ClassificationTask(3, inputs=("x", "mask")), mask=torch.ones(4, 8))


def test_writing_to_an_input_is_named() -> None:
    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x[:, 1:3] += 1.0
            return self.a(x)

    error = refusal(Adding())
    assert "an input is written to in place" in error.message
    assert "x[:, 1:3] += 1.0" in error.message
    assert "x.clone()" in error.mend


def test_ids_that_a_table_does_not_have_and_ids_that_are_no_whole_numbers() -> None:
    net = nn.Sequential(nn.Embedding(30, 8), nn.Flatten(), nn.Linear(40, 3))
    error = refusal(net, target="2", x=torch.full((4, 5), 30))
    assert "has no row in the table" in error.message
    assert "layer '0' (Embedding)" in error.message
    error = refusal(net, target="2", x=torch.full((4, 5), 3.0))
    assert "number formats" in error.message
    assert "int64" in error.mend
    sparse = nn.Sequential(nn.Embedding(30, 8, sparse=True), nn.Flatten(), nn.Linear(40, 3))
    error = refusal(sparse, target="0", x=torch.full((4, 5), 3))
    assert "sparse" in error.message
    assert "sparse=False" in error.mend


def test_operators_of_ones_own_are_named() -> None:
    with torch.library._scoped_library("pfl_test_refusals", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        error = refusal(Net(lambda y: y + torch.ops.pfl_test_refusals.twice(y.detach())))
    assert "pfl_test_refusals.twice" in error.message
    assert "in layer 'inner'" in error.message


def test_a_loss_is_named_by_its_line() -> None:
    def loss(output: Tensor, batch: Any) -> Tensor:
        return ((output - batch["labels"]) ** 2).mean(-1) * float(output.sum())

    error = refusal(nn.Sequential(nn.Linear(8, 1)), target="0", task=CustomTask(loss))
    assert re.search(rf", at .*{HERE}\d+: return \(\(output", error.message), error.message


def test_an_entry_that_a_loss_is_not_given_is_named() -> None:
    task = CustomTask(lambda output, batch: (output.mean(-1) - batch["target"]) ** 2)
    error = refusal(nn.Sequential(nn.Linear(8, 1)), target="0", task=task)
    assert "reads 'target', which it is not given" in error.message
    assert "labels=" in error.mend


def test_kinds_have_names_of_their_own_and_our_errors_stay_what_they_are() -> None:
    assert len({kind.name for kind in RAISED}) == len(RAISED)
    own = ExportError("no", mend="yes")
    assert explained(own, None) is own


def test_a_failure_without_a_kind_says_what_was_raised() -> None:
    error = explained(ArithmeticError("abc"), None, subject="it stops")
    assert error.message == "it stops: it cannot be traced: ArithmeticError: abc"


@pytest.mark.parametrize(
    ("raised", "name"),
    [
        (RuntimeError("Torch not compiled with CUDA enabled"), "another device"),
        (
            RuntimeError("Could not run 'quantized::linear' with arguments from the 'CPU' backend"),
            "quantized",
        ),
        (RuntimeError("Trying to backward through the graph a second time"), "an earlier forward pass"),
        (RuntimeError("The following operation failed in the TorchScript interpreter"), "TorchScript"),
        (NotImplementedError("no kernel"), "cannot be traced"),
    ],
)
def test_words_of_exceptions_that_are_rare(raised: Exception, name: str) -> None:
    assert name in explained(raised, nn.Linear(1, 1)).message


def test_lora_and_hooks_do_not_hide_the_layer() -> None:
    net = Net(lambda y: y)
    net.a.register_forward_hook(lambda _m, _i, o: o * 2 if o.sum() > 0 else o)
    rows = {"x": torch.randn(4, 8), "labels": torch.tensor([0, 1, 2, 0]), "weight": torch.ones(4)}
    with pytest.raises(ExportError, match="in layer 'a'"):
        trace_programs(
            personalize(net.eval(), [LoRA("a", rank=2)]), ClassificationTask(3), rows, {"x": rows["x"][:1]}
        )


def test_what_ends_the_gradient_is_named() -> None:
    def unfollowed(y: Tensor) -> Tensor:
        with torch.no_grad():
            return y.tanh()

    for function, words in (
        (lambda y: y.detach(), r"lambda y: y\.detach\(\)"),
        (lambda y: y.data * 2, r"y\.data"),
        (unfollowed, r"return y\.tanh\(\)"),
        (lambda y: F.one_hot(y.argmax(-1), 12).float(), r"y\.argmax"),
    ):
        error = refusal(Net(function))
        assert re.search(
            rf"influence on the loss.*gradient ends in layer 'inner' \(.*{words}", error.message
        ), error.message
        assert ".detach()" in error.mend


def test_a_class_without_forward_and_one_with_keywords_only() -> None:
    class Without(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 3)

    class Keywords(Without):
        def forward(self, *, x: Tensor) -> Tensor:
            return self.a(x)

    assert "the class Without has no forward" in refusal(Without()).message
    error = refusal(Keywords())
    assert "(*, x" in error.message
    assert "by position" in error.mend
