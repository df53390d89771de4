"""What a circuit does prompt by prompt: the finished record that reports draw."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import batching
from ..arguments import checked
from ..circuit import Circuit
from ..files import read_json, write_json
from ..graph import Graph
from ..objective import Objective
from ..types import EdgeBools, Mask

FORMAT = "jaxcircuits-inspection/1"
DECIMALS = 4  # of attention patterns in files
WIDTH = 16  # circuits evaluated at once, where they fit
BUFFERS = 64  # of the reference's size that one circuit takes, generously

Texts = tuple[str, ...]
PATTERNS = "patterns"


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """A circuit on single prompts; losses as `f` of one prompt gives them, lower is better.

    - `metric`: its name. `tokens`: the texts of each prompt's tokens, up to the last that is scored.
    - `answers`, `wrong`: the texts of right and wrong answers of each prompt; empty where there are none.
    - `loss_full`, `loss_circuit`, `loss_empty`: of the whole model, the circuit, and no edge at all.
    - `edges`: the circuit's edges by name. `effects`: f(circuit without this edge) - f(circuit) on each prompt.
    - `heads`: the circuit's heads by name. `patterns`: one array a prompt, what each position of the clean run
      reads of each earlier one.

    Raises ValueError for parts that do not fit together.
    """

    __no_type_check__ = True  # of the constructor: what does not fit is a ValueError

    metric: str
    tokens: tuple[Texts, ...]
    answers: tuple[Texts, ...]
    wrong: tuple[Texts, ...]
    loss_full: Float[np.ndarray, " prompt"]
    loss_circuit: Float[np.ndarray, " prompt"]
    loss_empty: Float[np.ndarray, " prompt"]
    edges: Texts
    effects: Float[np.ndarray, "edge prompt"]
    heads: Texts
    patterns: tuple[Float[np.ndarray, "head _ _"], ...]

    def __post_init__(self) -> None:
        prompts, heads = len(self.tokens), len(self.heads)
        for name in ("answers", "wrong", "patterns"):
            if len(getattr(self, name)) != prompts:
                raise ValueError(f"{name}: expected one for each of {prompts} prompts, got {len(getattr(self, name))}")
        arrays = {name: (prompts,) for name in ("loss_full", "loss_circuit", "loss_empty")}
        for name, shape in {**arrays, "effects": (len(self.edges), prompts)}.items():
            _check_array(name, getattr(self, name), shape)
        for number, (texts, pattern) in enumerate(zip(self.tokens, self.patterns, strict=True)):
            _check_array(f"patterns of prompt {number}", pattern, (heads, len(texts), len(texts)))

    @checked
    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON, whole or not at all; patterns with four decimals."""
        fields = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        fields[PATTERNS] = [np.round(pattern.astype(np.float64), DECIMALS).tolist() for pattern in self.patterns]
        write_json(path, {"format": FORMAT, **fields}, indent=None)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike) -> "Inspection":
        """Reads what `save` wrote. Raises ValueError for anything else."""
        value = read_json(path, "inspection file")
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT or value.keys() != names:
            raise ValueError(f"{path}: expected an inspection, {FORMAT!r}, with {', '.join(sorted(names))}")
        try:
            return cls(**{name: _read(name, entry, value) for name, entry in value.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None


@checked
def inspect_circuit(
    objective: Objective, circuit: Circuit, tokenizer: Any = None, *, prompts: int = 8, effects: bool = True
) -> Inspection:
    """The losses, edge effects and attention patterns of a circuit on the first prompts.

    One evaluation for each edge of the circuit: f(circuit without it) - f(circuit), prompt by prompt.

    - `tokenizer`: turns ids into texts; without one, ids are shown as numbers.
    - `prompts`: how many of the objective's. `effects`: False: no edge is tried; the record has none.

    Raises ValueError for a circuit of another graph and for less than one prompt.
    """
    graph = objective.graph
    if circuit.graph != graph:
        raise ValueError(f"expected a circuit of the model's graph, {graph.shape}, got one of {circuit.graph.shape}")
    if prompts < 1:
        raise ValueError(f"prompts: expected at least 1, got {prompts}")
    rows = np.arange(min(prompts, objective.num_prompts))
    shown = _of_single_prompts(objective.take(rows))
    losses = {name: np.asarray(shown.per_example(mask)) for name, mask in _three(circuit).items()}
    tokens, answers, wrong = _texts(shown, tokenizer)
    tried = circuit.mask if effects else np.zeros_like(circuit.mask)
    every = _heads(graph) if objective.model.has_patterns else ()
    heads = tuple(name for name in circuit.nodes if name in every)
    return Inspection(
        metric=objective.metric_name,
        tokens=tokens,
        answers=answers,
        wrong=wrong,
        **losses,
        edges=graph.names_of(tried),
        effects=_losses_without(shown, circuit.mask, tried) - losses["loss_circuit"],
        heads=heads,
        patterns=_patterns_of(shown, heads, [len(texts) for texts in tokens]),
    )


def _of_single_prompts(objective: Objective) -> Objective:
    """Each prompt's loss is its own mean over its scored positions, whatever its share of all prompts'."""
    shares = np.asarray(objective.weights).sum(1, keepdims=True)
    if np.abs(shares - 1).max() < 1e-6:
        return objective
    return eqx.tree_at(lambda o: o.weights, objective, objective.weights / shares)


def _three(circuit: Circuit) -> dict[str, np.ndarray]:
    valid = circuit.graph.valid
    return {"loss_full": valid, "loss_circuit": circuit.mask, "loss_empty": np.zeros_like(valid)}


def _losses_without(objective: Objective, kept: EdgeBools, tried: EdgeBools) -> Float[np.ndarray, "edge batch"]:
    """The loss of the circuit without each of the edges to try, on each prompt; a fixed number at a time."""
    edges = np.argwhere(tried).astype(np.int32)
    if not len(edges):
        return np.zeros((0, objective.num_prompts), np.dtype(objective.model.dtype))
    mask = jnp.asarray(kept, objective.model.dtype)
    share = batching.memory_limit() // (BUFFERS * objective.reference.nbytes)
    width = batching.from_first_process(min(WIDTH, max(1, share)))
    padded = edges[np.arange(-(-len(edges) // width) * width) % len(edges)]
    parts = np.split(padded, len(padded) // width)
    losses = [np.asarray(_without(objective, mask, jnp.asarray(part))) for part in parts]
    return np.concatenate(losses)[: len(edges)]


@eqx.filter_jit
def _without(objective: Objective, mask: Mask, edges: Int[Array, "edge 2"]) -> Float[Array, "edge batch"]:
    return jax.vmap(lambda edge: objective.per_example(mask.at[edge[0], edge[1]].set(0)))(edges)


@eqx.filter_jit
def _patterns(objective: Objective) -> Float[Array, "batch layer head position position"]:
    def one(prompt: tuple) -> Array:
        return objective.model.of_prompt(prompt[1]).attention_patterns(prompt[0])

    return jax.lax.map(one, (objective.clean, objective.span_at))


def _patterns_of(objective: Objective, heads: Texts, lengths: list[int]) -> tuple[np.ndarray, ...]:
    """Of each prompt, [head, position, position] of some heads, without the padding."""
    if not heads:
        return tuple(np.zeros((0, length, length)) for length in lengths)
    patterns = np.asarray(_patterns(objective))
    patterns = patterns.reshape(len(lengths), -1, *patterns.shape[-2:])  # layer by layer, as the graph names heads
    senders = {sender.name: sender.node for sender in objective.graph.sender_table if sender.kind == "head"}
    every = list(dict.fromkeys(senders.values()))
    chosen = [every.index(senders[head]) for head in heads]
    return tuple(pattern[chosen, :length, :length] for pattern, length in zip(patterns, lengths, strict=True))


def _heads(graph: Graph) -> tuple[str, ...]:
    return tuple(sender.name for sender in graph.sender_table if sender.kind == "head")


def _texts(objective: Objective, tokenizer: Any) -> tuple[tuple[Texts, ...], tuple[Texts, ...], tuple[Texts, ...]]:
    """Each prompt's tokens up to the last that is scored, and the right and wrong answers there."""
    clean, scored = np.asarray(objective.clean), np.asarray(objective.scored)
    last = np.where(np.asarray(objective.weights) > 0, scored, -1).argmax(1)
    lengths = np.take_along_axis(scored, last[:, None], 1)[:, 0] + 1

    def at_last(ids: Array | None) -> tuple[Texts, ...]:
        if ids is None:
            return ((),) * len(clean)
        each = np.asarray(ids)[np.arange(len(clean)), last]
        return tuple(tuple(text for one in row[row >= 0] for text in _decoded(tokenizer, one[None])) for row in each)

    tokens = tuple(tuple(_decoded(tokenizer, ids[:length])) for ids, length in zip(clean, lengths, strict=True))
    return tokens, at_last(objective.labels.answer), at_last(objective.labels.wrong)


def _decoded(tokenizer: Any, ids: np.ndarray) -> Iterator[str]:
    """The text that each token adds: tokenizers may put a space between tokens that no token has alone."""
    before = ""
    for end in range(1, len(ids) + 1):
        if tokenizer is None:
            yield str(ids[end - 1])
            continue
        text = tokenizer.decode(ids[:end].tolist())
        yield text[len(before) :] if text.startswith(before) else tokenizer.decode([int(ids[end - 1])])
        before = text


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _read(name: str, entry: Any, record: dict[str, Any]) -> Any:
    """A field as JSON holds it to what the record holds."""
    if name == "metric":
        return str(entry)
    if name in ("edges", "heads"):
        return tuple(map(str, entry))
    if name in ("tokens", "answers", "wrong"):
        return tuple(tuple(map(str, texts)) for texts in entry)
    if name == PATTERNS:
        shapes = [(len(record["heads"]), len(texts), len(texts)) for texts in record["tokens"]]
        return tuple(np.asarray(p, np.float64).reshape(s) for p, s in zip(entry, shapes, strict=True))
    shape = (-1,) if name != "effects" else (len(record["edges"]), len(record["tokens"]))
    return np.asarray(entry, np.float64).reshape(shape)
