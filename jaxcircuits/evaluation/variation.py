"""How much a result owes to choices that nobody means: which prompts, which templates, which corruption, which seed."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from ..arguments import MOST_DRAWN, check_count, checked
from ..circuit import Circuit
from ..finite import on_host
from ..identity import digest_of, identity_of, told_by
from ..objective import Objective
from ..references import divided
from ..savepoint import journal_of
from ..scores import Scores
from .records import Record
from .similarity import jaccard, rank_correlation


@dataclasses.dataclass(frozen=True)
class Component:
    """What one choice does, the others left as they were.

    - `variance`: that of the result under the choice, summed over the edges: of scores, or of being in the circuit, 0
      or 1. `runs`: results that it was estimated from.
    - `likeness`: mean and least of the results to the one of all prompts: Jaccard of circuits, Spearman's of scores;
      None where it is not defined (no edges, constant scores).
    - `edges`: the fewest and the most that a circuit has.
    """

    choice: str
    runs: int
    variance: float
    likeness: tuple[float, float] | None
    edges: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Variation(Record):
    """The components of a result's variance, one a choice, each alone: no interactions."""

    kind: ClassVar[str] = "variation"
    components: tuple[Component, ...]
    run: dict[str, Any]

    @property
    def shares(self) -> dict[str, float]:
        """Each choice's share of the sum of all variances; 0 where nothing varies."""
        whole = sum(component.variance for component in self.components)
        return {component.choice: component.variance / whole if whole else 0.0 for component in self.components}


@checked
def variation(
    objective: Objective,
    method: Callable[..., Any],
    *,
    bootstrap: int = 20,
    groups: ArrayLike | None = None,
    corruptions: int = 10,
    seeds: int = 0,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
) -> Variation:
    """Runs a method again and again, each time with one choice made otherwise.

    - `method`: from an objective to `Scores`, whose values are compared, or a result with a mask (a circuit, an ACDC
      result, a learnt mask), whose edges are. Where `seeds` are asked for it takes `seed=` besides.
    - `bootstrap`: runs on prompts drawn with replacement, the choice "prompts".
    - `groups`: which prompts belong together, [batch], such as their template (`PromptPairs.group`): runs without each,
      whose spread the delete-one-group jackknife makes a variance (Efron and Stein, 1981).
    - `corruptions`: runs in which every prompt has the corrupt version of another one of its length.
    - `seeds`: runs with other seeds, from 1 on; the others have seed 0. `seed`: of the draws of prompts.
    - `checkpoint`: a folder that keeps what runs gave; the same call goes on after them. The method is known by its
      result on all prompts, which is computed first and always, and by what that one's record says.

    A variance is that of one result: of the prompts at hand, of one corrupt draw, of one seed. Raises ValueError for a
    choice with less than 2 runs, for groups that are not 2 or more, for corruptions of another reference than
    "resample" or of prompts whose lengths are all different, and for a checkpoint that is damaged or another run's.
    """
    for name, count in (("bootstrap", bootstrap), ("corruptions", corruptions), ("seeds", seeds)):
        if count:
            check_count(name, count, 2, MOST_DRAWN)
    random = np.random.default_rng(seed)
    seeded = {"seed": 0} if seeds else {}
    runs: dict[str, list[Callable[[], Any]]] = {}
    if bootstrap:
        rows = random.integers(0, objective.num_prompts, (bootstrap, objective.num_prompts))
        runs["prompts"] = [lambda some=some: method(_of_rows(objective, some), **seeded) for some in rows]
    if groups is not None:
        without = _without_each(groups, objective.num_prompts)
        runs["groups"] = [lambda some=some: method(_of_rows(objective, some), **seeded) for some in without]
    if corruptions:
        orders = [_exchange(objective, random) for _ in range(corruptions)]
        runs["corruptions"] = [lambda order=order: method(_corrupted(objective, order), **seeded) for order in orders]
    if seeds:
        runs["seeds"] = [lambda number=number: method(objective, seed=number) for number in range(1, seeds + 1)]
    if not runs:
        raise ValueError("variation: expected a choice to vary, got none of bootstrap, groups, corruptions and seeds")
    full = _comparable(method(objective, **seeded))

    def identity() -> dict[str, Any]:
        counts = {choice: len(results) for choice, results in runs.items()}
        given = {} if groups is None else {"groups": digest_of(np.unique(np.asarray(groups), return_inverse=True)[1])}
        return {
            "runs": counts,
            "seed": seed,
            **given,
            "method": told_by(full.run, _values(full)),
            **identity_of(objective),
        }

    with journal_of(checkpoint, identity) as journal:
        components = []
        for choice, results in runs.items():
            found = []
            for number, result in enumerate(results):
                row = lambda result=result: _row(full, _comparable(result()))  # noqa: E731
                found.append(row() if journal is None else journal.call(f"{choice} {number}", row))
            components.append(_component(choice, np.array(found)))
    return Variation(tuple(components), {**full.run, "draws_seed": seed})


def _comparable(result: Any) -> Scores | Circuit:
    return result if isinstance(result, Scores) else Circuit.of(result)


def _row(full: Scores | Circuit, result: Scores | Circuit) -> Float[np.ndarray, " column"]:
    """What is compared of a result: its likeness to the full one (NaN: not defined), its edges, and its values."""
    alike: Callable[..., float | None] = rank_correlation if isinstance(full, Scores) else jaccard
    likeness = alike(full, result)
    return np.array([np.nan if likeness is None else likeness, result.mask.sum(), *_values(result)])


def _component(choice: str, rows: Float[np.ndarray, "run column"]) -> Component:
    count = len(rows)
    likenesses, sizes, values = rows[:, 0], rows[:, 1].astype(int), rows[:, 2:]
    variance = values.var(0, ddof=1).sum()
    if choice == "groups":
        variance *= (count - 1) ** 2 / count
    defined = likenesses[~np.isnan(likenesses)]
    likeness = (float(defined.mean()), float(defined.min())) if len(defined) else None
    return Component(choice, count, float(variance), likeness, (int(sizes.min()), int(sizes.max())))


def _values(result: Any) -> Float[np.ndarray, " edge"]:
    values = result.scores if isinstance(result, Scores) else result.mask
    return values[result.graph.valid].astype(np.float64)


def _of_rows(objective: Objective, rows: Int[np.ndarray, " row"]) -> Objective:
    """The objective of these prompts, each as often as it is named."""
    taken = objective.take(rows)
    return eqx.tree_at(lambda o: o.weights, taken, taken.weights * (len(rows) / taken.weights.sum()))


def _without_each(groups: ArrayLike, prompts: int) -> list[Int[np.ndarray, " row"]]:
    """The prompts without each group's."""
    groups = np.asarray(groups)
    if groups.shape != (prompts,):
        raise ValueError(f"groups: expected one a prompt, shape ({prompts},), got {groups.shape}")
    names = np.unique(groups)
    if len(names) < 2:
        raise ValueError(f"groups: expected at least 2, got {len(names)}: without it no prompt is left")
    return [np.flatnonzero(groups != name) for name in names]


def _exchange(objective: Objective, random: np.random.Generator) -> Int[np.ndarray, " prompt"]:
    """Whose corrupt version each prompt gets: another one's of its length, in one random cycle of all these."""
    if objective.reference_name != "resample":
        raise ValueError(
            f"corruptions: expected reference 'resample', got {objective.reference_name!r}: it has no corrupt version "
            "of each prompt; give corruptions=0"
        )
    lengths, order = on_host(objective.inside).sum(1), np.arange(objective.num_prompts)
    for length in np.unique(lengths):
        cycle = random.permutation(np.flatnonzero(lengths == length))
        order[cycle] = np.roll(cycle, 1)
    if (order == np.arange(len(order))).all():
        raise ValueError("corruptions: expected two prompts of one length, got none; give corruptions=0")
    return order


def _corrupted(objective: Objective, order: Int[np.ndarray, " prompt"]) -> Objective:
    reference = divided(objective.model, jnp.asarray(objective.reference)[:, order], objective.span_at)
    exchanged = objective.corrupt[order], reference
    return eqx.tree_at(lambda o: (o.corrupt, o.reference), objective, exchanged)
