"""BatchNorm and other layers that a forward pass changes: refused by name, with ways out that work."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pfl_mobile import ClassificationTask, Head, fit_batch_norm, personalize, replace_batch_norm
from pfl_mobile.errors import ConfigError, DataError, ExportError
from pfl_mobile.modules.normalization import look
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.programs.trace import trace_programs
from pfl_mobile.strategies import Local
from pfl_mobile.study import Machine, Study


class Net(nn.Module):
    """Features, a layer that changes itself, a head."""

    def __init__(self, norm, shape=()):
        super().__init__()
        self.body, self.norm, self.shape, self.head = nn.Linear(6, 16), norm, shape, nn.Linear(16, 3)

    def forward(self, x):
        y = self.body(x)
        y = self.norm(y.reshape(len(y), -1, *self.shape) if self.shape else y)
        return self.head(torch.relu(y.reshape(len(y), 16)))


class Moving(nn.Module):
    """Centres by a moving average."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(16))

    def forward(self, x):
        if self.training:
            self.average.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.average


class Replacing(Moving):
    """Puts a new buffer in place of the old one."""

    def forward(self, x):
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return x - self.average


class Counting(nn.Module):
    """A temperature by a counter that is a plain number."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return x / (1 + self.steps)


class Remembering(nn.Module):
    """Averages in a list."""

    def __init__(self):
        super().__init__()
        self.seen = [torch.zeros(16)]

    def forward(self, x):
        if self.training:
            self.seen.append(0.9 * self.seen[-1] + 0.1 * x.detach().mean(0))
        return x - self.seen[-1]


class Writing(nn.Module):
    """Averages in a parameter that is not trained."""

    def __init__(self):
        super().__init__()
        self.average = nn.Parameter(torch.zeros(16), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.average.data.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.average


class Functional(nn.Module):
    """Calls the function, with buffers of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("var", torch.ones(16))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, training=self.training)


KINDS = {
    "BatchNorm1d": lambda: Net(nn.BatchNorm1d(16)),
    "BatchNorm2d": lambda: Net(nn.BatchNorm2d(4), (2, 2)),
    "BatchNorm3d": lambda: Net(nn.BatchNorm3d(4), (2, 2, 1)),
    "no affine": lambda: Net(nn.BatchNorm1d(16, affine=False)),
    "cumulative": lambda: Net(nn.BatchNorm1d(16, momentum=None)),
    "no momentum": lambda: Net(nn.BatchNorm1d(16, momentum=0.0)),
    "SyncBatchNorm": lambda: Net(nn.SyncBatchNorm(16)),
    "LazyBatchNorm1d": lambda: Net(nn.LazyBatchNorm1d()),
    "InstanceNorm1d": lambda: Net(nn.InstanceNorm1d(4, track_running_stats=True), (4,)),
    "nested": lambda: Net(nn.Sequential(nn.Identity(), nn.BatchNorm1d(16))),
}
OWN = {
    "moving": Moving,
    "replacing": Replacing,
    "counting": Counting,
    "functional": Functional,
    "list": Remembering,
    "parameter": Writing,
}


def users(scale=1.0, count=4, rows=100):
    made = {}
    for i in range(count):
        g = np.random.default_rng(i)
        x = g.normal(size=(rows, 6)).astype(np.float32)
        labels = np.argmax(x[:, :3] + 0.1 * x[:, 3:], 1)
        made[f"u{i}"] = {"x": x * np.float32(scale) + np.float32(3 * scale), "labels": labels}
    return made


def study(model, data=None, **settings):
    return Study(
        model, data or users(), machine=Machine(processes=0), local=Local(optimizer=Sgd(lr=0.1)), **settings
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_unfitted_normalization_is_refused_by_name_with_the_ways_out(kind):
    for model in (KINDS[kind], lambda: KINDS[kind]().eval()):
        with pytest.raises(ConfigError, match=r"layer 'norm(\.1)?'.*") as caught:
            study(model)
        assert "fit_batch_norm" in caught.value.mend
        assert "replace_batch_norm" in caught.value.mend


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_out_of_every_kind_train(kind):
    made = KINDS[kind]()
    if kind == "LazyBatchNorm1d":
        made.eval()(torch.zeros(2, 6))
        made.train()
    for way in (fit_batch_norm(made, users()), replace_batch_norm(made)):
        with study(way).run(rounds=1) as result:
            assert not result.history[0].failures


def test_a_lazy_layer_needs_a_shape_first():
    for call in (
        lambda m: fit_batch_norm(m, users()),
        replace_batch_norm,
        lambda m: personalize(m, [Head("head")]),
    ):
        for layer in (nn.LazyBatchNorm1d(), nn.LazyBatchNorm1d(affine=False)):
            with pytest.raises(ConfigError, match="no shape yet"):
                call(Net(layer))


@pytest.mark.parametrize("kind", OWN)
def test_a_layer_of_ones_own_that_training_mode_changes_is_refused(kind):
    with pytest.raises(ConfigError, match=r"layer 'norm'.*training mode") as caught:
        study(Net(OWN[kind]()))
    assert ".eval()" in caught.value.mend


def test_what_is_said_to_stay_as_it_is_stays():
    model = Net(Moving())
    model.norm.average.fill_(0.5)
    model.norm.eval()
    study(model)
    model = Net(nn.BatchNorm1d(16)).eval()
    model.norm.running_mean.uniform_(-1, 1)  # set by hand: no batches are counted
    study(model)


def test_a_layer_hidden_in_a_personal_head_and_a_functional_one_are_found():
    net = Net(nn.Identity())
    net.head = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3))
    with pytest.raises(ConfigError, match=r"'head\.0'"):
        study(net, personal=["head"], strategy="fedper")
    with pytest.raises(ConfigError, match=r"layer 'norm' .Functional. has running statistics of 0 and 1"):
        study(Net(Functional()).eval())


def test_a_personalized_model_with_an_unfitted_layer_is_refused():
    with pytest.raises(ConfigError, match=r"layer 'norm'.*0 and 1"):
        study(personalize(Net(nn.BatchNorm1d(16)), [Head("head")], roles={"head": "shared"}))


def test_a_normalization_by_the_batch_is_refused_as_padding_would_count():
    with pytest.raises(ConfigError, match=r"layer 'norm'.*statistics of each batch"):
        study(Net(nn.BatchNorm1d(16, track_running_stats=False)))
    study(Net(nn.InstanceNorm1d(4), (4,)))  # normalizes each example by itself


class Centering(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def test_rows_that_depend_on_each_other_are_refused_as_padding_would_count():
    with pytest.raises(ConfigError, match="depends on the other rows"):
        study(Net(Centering()))


def test_constant_buffers_of_every_dtype_are_no_change():
    net = Net(nn.Identity())
    for i, dtype in enumerate((torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.complex64)):
        net.norm.register_buffer(f"constant{i}", torch.ones(3).to(dtype))
    net.norm.register_buffer("nothing", None)
    net.norm.register_buffer("nan", torch.full((2,), torch.nan))
    study(net)
    assert not look(net, [torch.randn(4, 6)], training=True).changed


def test_what_a_pass_notes_for_others_is_no_change():
    class Noting(nn.Linear):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            self.last = x
            return super().forward(x)

    net = Net(Noting(16, 16))
    study(net, task=ClassificationTask(3))
    assert not hasattr(net.norm, "last")


def test_looking_leaves_nothing():
    net = Net(nn.Sequential(Replacing(), nn.BatchNorm1d(16), nn.Dropout(0.5), Counting(), Remembering()))
    net.norm[1].eval()
    before = copy.deepcopy(net.state_dict())
    average, modes = net.norm[0].average, [m.training for m in net.modules()]
    x = torch.randn(4, 6)
    generator = torch.random.get_rng_state()
    seen = look(net, [x], training=True)
    assert set(seen.changed) == {"norm.0", "norm.1", "norm.3", "norm.4"}
    assert len(net.norm[4].seen) == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.norm[0].average is average
    assert net.norm[3].steps == 0
    assert modes == [m.training for m in net.modules()]
    assert torch.equal(generator, torch.random.get_rng_state())


# -- fitting


def test_fitted_statistics_are_those_of_the_rows():
    net = Net(nn.BatchNorm1d(16))
    x = np.concatenate([rows["x"] for rows in users().values()])
    fitted = fit_batch_norm(net, {"x": x, "labels": np.zeros(len(x), np.int64)})
    with torch.no_grad():
        y = net.body(torch.from_numpy(x))
    assert torch.allclose(fitted.norm.running_mean, y.mean(0), atol=1e-5)
    assert torch.allclose(fitted.norm.running_var, y.var(0), rtol=0.01)
    assert fitted.norm.num_batches_tracked > 0
    assert fitted.norm.momentum == 0.1
    assert not fitted.norm.training
    assert fitted.body.training
    assert torch.equal(net.norm.running_var, torch.ones(16))
    assert net.norm.training


def test_rows_of_weight_0_and_test_rows_do_not_enter_the_statistics():
    data = users()
    for rows in data.values():
        rows["weight"] = np.ones(100, np.float32)
    clean = fit_batch_norm(fresh(), data)
    for rows in data.values():
        rows["weight"][:10] = 0
    less = fit_batch_norm(fresh(), data)
    for rows in data.values():
        rows["x"][:10] = 1e6
        rows["x"][80:] = -1e6  # the newest fifth is the test set
    spoiled = fit_batch_norm(fresh(), data)
    assert torch.equal(less.norm.running_mean, spoiled.norm.running_mean)
    assert not torch.equal(clean.norm.running_mean, less.norm.running_mean)


def fresh():
    """A model with the same weights every time."""
    torch.manual_seed(0)
    return Net(nn.BatchNorm1d(16))


def test_a_layer_called_twice_has_the_statistics_of_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(x) + self.norm(x + 10)

    fitted = fit_batch_norm(Twice(), {"x": np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)})
    assert torch.allclose(fitted.norm.running_mean, torch.full((6,), 5.0), atol=0.3)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="no normalization"):
        fit_batch_norm(Net(nn.Identity()), users())
    with pytest.raises(DataError, match="1 rows"):
        fit_batch_norm(fresh(), {"x": np.zeros((1, 6), np.float32)})
    with pytest.raises(ConfigError, match="no 'y'"):
        fit_batch_norm(fresh(), users(), inputs=["y"])
    with pytest.raises(ConfigError, match="fails on rows"):
        fit_batch_norm(fresh(), {"x": np.zeros((9, 5), np.float32)})


@pytest.mark.parametrize("scale", [0.5, 50.0])
def test_with_either_way_out_a_study_is_as_good_as_a_plain_loop_with_batch_norm(scale):
    data = users(scale)
    ways = (fit_batch_norm(fresh(), data), replace_batch_norm(fresh()))
    for model, least in zip(ways, (90, 75), strict=True):
        with study(model, data).run(rounds=15, local_epochs=2) as result:
            assert result.evaluate().global_acc >= least
    with study(ways[0], data, strategy="fedper", personal=["norm"]).run(rounds=10, local_epochs=2) as result:
        assert result.evaluate().personalized_acc >= 75  # FedBN: scale and shift are each user's own


# -- replacing


def test_group_norm_takes_scale_and_shift_and_every_name_of_a_shared_layer():
    norm = nn.BatchNorm2d(32)
    nn.init.uniform_(norm.weight)
    net = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm, nn.InstanceNorm2d(4, track_running_stats=True))})
    made = replace_batch_norm(net)
    assert made["a"] is made["b"][0]
    assert isinstance(made["a"], nn.GroupNorm)
    assert made["a"].num_groups == 4
    assert torch.equal(made["a"].weight, norm.weight)
    assert made["a"].weight is not norm.weight
    assert made["b"][1].running_mean is None
    assert net["b"][1].running_mean is not None
    assert isinstance(replace_batch_norm(nn.BatchNorm1d(16)), nn.GroupNorm)


@pytest.mark.parametrize(
    ("layer", "groups"), [(nn.BatchNorm2d(6), 4), (nn.BatchNorm1d(1), None), (nn.BatchNorm1d(4), 4)]
)
def test_groups_that_cannot_be_are_refused(layer, groups):
    with pytest.raises(ConfigError, match="layer '0'"):
        replace_batch_norm(nn.Sequential(layer), groups)


# -- export


def programs(backbone):
    batch = {"x": torch.randn(4, 6), "labels": torch.zeros(4, dtype=torch.int64), "weight": torch.ones(4)}
    return trace_programs(personalize(backbone, [Head("head")]), ClassificationTask(3), batch, batch)


class Always(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm.train()(x)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(16), Moving(), Replacing(), Counting(), Functional()])
def test_a_layer_that_changes_itself_in_a_program_is_named(norm):
    with pytest.raises(ExportError, match=r"layer 'norm\.norm'"):
        programs(Net(Always(norm)))


def test_what_an_export_is_seldom_meant_to_have_is_warned_of():
    with pytest.warns(UserWarning, match=r"layer 'norm'.*0 and 1"):
        programs(Net(nn.BatchNorm1d(16)))


def test_a_fitted_normalization_is_exported_as_it_is(recwarn):
    model = fit_batch_norm(fresh(), users())
    evaluate = programs(model)["evaluate"]
    entries = {name: evaluate.inputs[name] for name in ("x", "labels")}
    with torch.no_grad():
        loss = F.cross_entropy(model.eval()(entries["x"]), entries["labels"], reduction="sum")
    assert torch.allclose(evaluate.run(evaluate.inputs)["loss_sum"], loss, rtol=1e-5)
    assert not [w for w in recwarn if "statistics" in str(w.message)]
