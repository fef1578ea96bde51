"""Fitting the gate of the keyboard's memory, on training users whom the backbone never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_mobile.errors import ConfigError, DataError, TooFewUsersError
from pfl_mobile.local.memory import memorize
from pfl_mobile.modules.memory import Entries, Memory
from pfl_mobile.modules.slots import UNASSIGNED

from .ngrams import NgramTable
from .training import counted_rows, mean_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pfl_mobile.data import UserText
    from pfl_mobile.modules.personalize import PersonalizedModel
    from pfl_mobile.modules.shared_ngrams import SharedNgrams
    from pfl_mobile.text.encoder import Rows

# Tensors of the memory that are the user's own.
_PERSONAL = ("next", "context")


def gate_users(
    users: UserText, count: int = 20, least: int = 50, most: int = 150, seed: int = 0, at_least: int = 1
) -> tuple[UserText, UserText]:
    """Set training users apart for fitting the memory's gate, so that the backbone never sees them.

    Small users are taken, as they cost the backbone little text; where too few have between ``least`` and
    ``most`` messages, those with the fewest messages above ``least``. At most a fifth of the users is taken, or
    ``at_least``: the gate ships to everybody, so it must not be of a single person's making.

    Returns:
        The users left for the backbone, and those for the gate.

    Raises:
        TooFewUsersError: fewer than ``at_least`` have ``least`` messages, or nobody would be left.
    """
    count = max(at_least, min(count, len(users.users) // 5))
    enough = [u for u in users.users if len(users.users[u]) >= least]
    if len(enough) < at_least or len(users.users) <= at_least:
        raise TooFewUsersError(
            f"{users.name}: {at_least} training users with {least} messages cannot be set apart for the memory's gate",
            mend="give more users, or lower `least`",
        )
    inside = [u for u in enough if len(users.users[u]) <= most]
    if len(inside) >= count:
        inside.sort()
        chosen = [inside[int(i)] for i in np.random.default_rng(seed).permutation(len(inside))[:count]]
    else:
        chosen = sorted(enough, key=lambda u: (len(users.users[u]), u))[:count]
    left = [u for u in users.users if u not in set(chosen)]
    return users.select(left), users.select(chosen)


def learn(
    model: PersonalizedModel,
    rows: Rows,
    *,
    lr: float = 2e-3,
    epochs: int = 3,
    max_steps: int | None = 80,
    batch: int = 16,
    clip: float = 1.0,
    seed: int = 0,
) -> int:
    """Train the device tensors of ``model`` in PyTorch, as the recipe's plan does on a device.

    AdamW whose learning rate falls linearly to 0. For the users that fit the gate and for comparing recipes
    quickly; products go through ``LocalTrainer``.

    Returns:
        How many steps were made: ``epochs`` passes over the rows, ``max_steps`` at most.
    """
    tokens, labels, weight = counted_rows(rows)
    parameters = model.train_parameters()
    if not parameters or not len(tokens):
        return 0
    steps = epochs * -(-len(tokens) // batch)
    steps = min(steps, steps if max_steps is None else max_steps)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(tokens), generator=generator)
    for step in range(steps):
        if len(order) == 0:
            order = torch.randperm(len(tokens), generator=generator)
        part, order = order[:batch], order[batch:]
        logits = model.forward_for_gradients(tokens[part])
        loss = mean_loss(nn.Identity(), logits, labels[part], weight[part])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return steps


@dataclass(frozen=True)
class GateExamples:
    """What the gate is fitted on: for N labels, how likely each part of the mixture finds them.

    Attributes:
        chances: float32 [N, order + 1], probability of the label under each order, then under the model; with
            everybody's n-grams [N, order + 2], theirs before the model's.
        counts: float32 [N, order], matching entries of each order.
        rows: int64 [N], the row of everybody's n-grams; None without them.
    """

    chances: Tensor
    counts: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class GateFit:
    """What fitting the gate gave.

    Attributes:
        loss_before: mean of -log p(label) before.
        loss_after: the same afterwards.
        trust: float32 [6], weights of the features on which the trust in everybody's n-grams depends.
    """

    loss_before: float
    loss_after: float
    trust: Tensor


def set_table(
    model: PersonalizedModel, table: NgramTable, trust: Tensor | None = None, name: str = "memory"
) -> None:
    """Put everybody's n-grams into the memory; without ``trust`` they stay unused until the gate is fitted."""
    shared = shared_ngrams(model, name)
    shared.words.copy_(table.words)
    shared.parts.copy_(table.parts)
    shared.key.copy_(table.key)
    if trust is None:
        shared.score.fill_(UNASSIGNED)
    else:
        shared.score.copy_(table.scores(trust.detach(), UNASSIGNED))


def gate_examples(
    model: PersonalizedModel,
    history: Rows,
    later: Rows,
    *,
    most: int = 2000,
    batch: int = 16,
    name: str = "memory",
) -> GateExamples:
    """Examples for the gate from one user, with the personal values that ``model`` holds.

    The memory is filled with ``history``, labels come from ``later``; encode both with ``drop_unknown=True``.

    Args:
        model: a personalized model with a memory, trained or not.
        history: rows to remember.
        later: rows to predict.
        most: no more than so many labels, so that no user outweighs the others.
        batch: rows at a time.
        name: of the memory module.
    """
    memory = _memory(model, name)
    following, context, _ = memorize(
        history["tokens"], history["labels"], history["weight"], memory.next.shape[0], memory.context.shape[1]
    )
    model.load_values({f"{name}.next": following, f"{name}.context": context}, partial=True)
    tokens, labels, weight = counted_rows(later)
    chances, counts, found = [], [], []
    with torch.no_grad():
        for i in range(0, len(tokens), batch):
            x, y, counted = tokens[i : i + batch], labels[i : i + batch], weight[i : i + batch] > 0
            log_p = F.log_softmax(model.forward_for_gradients(x)[counted], dim=-1)
            masks, count = memory.matches(x)
            same = (memory.next == y.unsqueeze(-1)).to(count.dtype)
            shares = [(mask * same).sum(-1) / count[..., k].clamp(min=1.0) for k, mask in enumerate(masks)]
            parts = [torch.stack(shares, dim=-1)[counted]]
            if memory.shared is not None:
                found.append(memory.shared.rows(x)[counted])
                words, chance = memory.shared.followers(found[-1])
                parts.append((chance * (words == y[counted].unsqueeze(-1))).sum(-1, keepdim=True))
            own = log_p.gather(-1, y[counted].unsqueeze(-1)).exp()
            chances.append(torch.cat([*parts, own], dim=-1))
            counts.append(count[counted])
    if not chances:
        parts_of = memory.order + (1 if memory.shared is None else 2)
        return GateExamples(torch.zeros(0, parts_of), torch.zeros(0, memory.order))
    return GateExamples(
        torch.cat(chances)[:most], torch.cat(counts)[:most], torch.cat(found)[:most] if found else None
    )


def fit_gate(
    model: PersonalizedModel,
    users: Sequence[GateExamples],
    *,
    steps: int = 300,
    lr: float = 0.05,
    name: str = "memory",
    table: NgramTable | None = None,
) -> GateFit:
    """Fit the gate of the memory in ``model`` to the labels of users whom the backbone never saw.

    Maximum likelihood of the mixture, by Adam over all labels at once; deterministic. Do it before the
    export: on a device the gate is frozen.

    Args:
        model: a personalized model with a memory.
        users: examples of each user.
        steps: of Adam.
        lr: its learning rate.
        name: of the memory module.
        table: everybody's n-grams that the model's memory holds; how far to trust them is fitted too, and put
            into the memory. None where there are none.

    Returns:
        The losses, and what :func:`set_table` needs for another table.

    Raises:
        DataError: there is no label.
    """
    memory = _memory(model, name)
    gate = memory.gate
    chances = torch.cat([u.chances for u in users]) if users else torch.zeros(0, 1)
    if not len(chances):
        raise DataError("there is no text to fit the memory's gate on", mend="give users with more messages")
    counts = torch.cat([u.counts for u in users])
    trust = nn.Parameter(torch.tensor([-1.0, 0.0, 0.0, -1.0, 0.0, 0.0]))
    rows = None if table is None else torch.cat([u.rows for u in users if u.rows is not None])

    def loss() -> Tensor:
        shared = None if table is None else table.scores(trust, UNASSIGNED)[rows]
        p = (gate(counts, shared).exp() * chances).sum(-1)
        return -torch.log(p + 1e-9).mean()

    parameters = [*gate.parameters(), *([] if table is None else [trust])]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    before = float(loss().detach())
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    if table is not None:
        set_table(model, table, trust, name)
    return GateFit(before, float(loss().detach()), trust.detach())


def shared_ngrams(model: PersonalizedModel, name: str = "memory") -> SharedNgrams:
    """The place of everybody's n-grams in the memory.

    Raises:
        ConfigError: the memory has none.
    """
    shared = _memory(model, name).shared
    if shared is None:
        raise ConfigError(f"{name} has no place for everybody's n-grams", mend="give NgramMemory followers")
    return shared


def gate_values(model: PersonalizedModel, name: str = "memory") -> dict[str, Tensor]:
    """The frozen part of the memory, gate and everybody's n-grams, to keep beside the backbone's weights.

    Nothing for a memory with a discount.
    """
    state = _entries(model, name).state_dict()
    return {k: v.detach().clone() for k, v in state.items() if k not in _PERSONAL}


def set_gate(model: PersonalizedModel, values: Mapping[str, Tensor], name: str = "memory") -> None:
    """Put :func:`gate_values` into another model with the same memory."""
    memory = _entries(model, name)
    own = {k: v for k, v in memory.state_dict().items() if k in _PERSONAL}
    memory.load_state_dict({**own, **values})


def _entries(model: PersonalizedModel, name: str) -> Entries:
    if name not in model.extras or not isinstance(model.extras[name], Entries):
        raise ConfigError(f"the model has no memory called {name!r}", mend="add NgramMemory() to its modules")
    return cast("Entries", model.extras[name])


def _memory(model: PersonalizedModel, name: str) -> Memory:
    memory = _entries(model, name)
    if not isinstance(memory, Memory):
        raise ConfigError(
            f"the memory {name!r} has a discount and no gate", mend="give NgramMemory(discount=0)"
        )
    return memory
