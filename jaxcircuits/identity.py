"""What of an objective determines the answer of a run: for its record, and so that a run goes on with the same."""

import hashlib
import platform
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import equinox as eqx
import jax
import numpy as np

from . import metrics
from .run import SOURCE, digest

RECORDED = ("reference", "average", "prompts", "dtype", "precision", "device", "mesh")
PACKAGES = ("jaxcircuits", "jax", "jaxlib", "equinox", "numpy", "optax")
"""Whose versions may show in the last bits of an answer, or in what a seed draws."""
SETTINGS = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl", "jax_default_matmul_precision")
"""Of JAX, which show there too."""


def description(objective: Any) -> dict[str, Any]:
    """What determines the values of an `Objective`, for the record of a result."""
    device = jax.devices()[0]
    count = 1 if objective.mesh is None else objective.mesh.size
    return {
        SOURCE: {} if objective.mesh is not None else {"digest_of_pairs": _digest_of_pairs(objective)},
        "metric": objective.metric_name,
        "reference": objective.reference_name,
        "ablation": {
            "granularity": "edge",
            "component": "all",
            "value": objective.reference_name,
            "reference_data": {"resample": "corrupt prompts, pairwise", "mean": "corrupt prompts, mean"}.get(
                objective.reference_name, objective.reference_name
            ),
            "reference_size": objective.num_prompts,
            "positions": "all",
            "direction": "ablate",
            "set": "circuit",
        },
        "average": objective.average,
        "prompts": objective.num_prompts,
        "microbatch": objective.microbatch,
        "dtype": str(np.dtype(objective.model.dtype)),
        "precision": objective.model.precision,
        **({} if objective.model.backward == "plain" else {"backward": objective.model.backward}),
        **({} if objective.model.units_name == "split" else {"units": objective.model.units_name}),
        **({} if objective.model.spans_text is None else {"spans": objective.model.spans_text}),
        "device": f"{count} x {device.platform} {device.device_kind}",
        "mesh": None if objective.mesh is None else dict(objective.mesh.shape),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in PACKAGES},
        },
    }


def _digest_of_pairs(objective: Any) -> str:
    """Of the prompts, their corrupt versions, spans and labels, not of what a model makes of them."""
    tokens = objective.clean, objective.corrupt, objective.inside, objective.scored, objective.span_at
    return digest_of((tokens, eqx.tree_at(lambda labels: labels.full, objective.labels, None)))


def identity_of(objective: Any) -> dict[str, Any]:
    """Of an `Objective`, a `NodeObjective` or an `Ablated`: weights, prompts and values by their digests.

    Raises ValueError in a run of several processes, of which none has all values, and for a metric or a model that
    calls back to Python, of which nothing is known.
    """
    if jax.process_count() > 1:
        raise ValueError("checkpoint: expected a run of one process, got one of several; run it without")
    inner = getattr(objective, "objective", objective)
    if not hasattr(inner, "describe"):
        return {"objective": digest_of(inner)}
    record = inner.describe()
    labels = eqx.tree_at(lambda labels: labels.full, inner.labels, None)
    return {
        "model": f"{digest_of(inner.model)}-{_structure(inner.model)}-{_run_of(inner)}",
        "data": digest_of(
            (inner.clean, inner.corrupt, inner.inside, inner.scored, inner.weights, labels, inner.span_at)
        ),
        "metric": _metric(inner),
        "reference values": digest_of(inner.reference),
        **({"restoring": True} if inner.is_restoring else {}),
        **({"kept edges": digest_of(objective.kept)} if hasattr(objective, "kept") else {}),
        **{name: record[name] for name in RECORDED},
        "versions": {name: record["versions"][name] for name in PACKAGES} | runtime_of(jax.devices()[0]),
        "settings": {name: getattr(jax.config, name) for name in SETTINGS},
    }


def told_by(run: dict[str, Any], values: np.ndarray) -> dict[str, Any]:
    """Of a method, by its result on all prompts: what the record says, but for the clock, and the values' digest."""
    said = {name: value for name, value in run.items() if isinstance(value, str | bool | int | float)}
    return {name: value for name, value in said.items() if "seconds" not in name} | {"result": digest_of(values)}


def runtime_of(device: Any) -> dict[str, str]:
    """The version of what compiles and runs on a device, where that is not jaxlib itself: libtpu, CUDA."""
    return {} if device.platform == "cpu" else {"runtime": device.client.platform_version}


def digest_of(tree: Any) -> str:
    """Of all arrays of a pytree."""
    return digest(np.asarray(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf))


def _structure(tree: Any) -> str:
    """Of all that is not an array, such as a model's configuration."""
    return _of_text(repr(jax.tree.structure(tree)) + repr([x for x in jax.tree.leaves(tree) if not eqx.is_array(x)]))


def _run_of(objective: Any) -> str:
    """Of what a model computes: of functions that it holds, or whose code was changed, the names tell nothing."""
    arrays, rest = eqx.partition(objective.model, eqx.is_array)
    prompt = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (objective.clean, objective.span_at))

    def run(arrays: Any, tokens: Any, spans: Any) -> Any:
        model = eqx.combine(arrays, rest).of_prompt(spans)
        streams, written = model.recorded(tokens)
        return model.unembed(streams[-1]), written

    return _traced(run, arrays, *prompt)


def _metric(objective: Any) -> str:
    """Its name; of a user's, also what it computes, and its slope."""
    metric, name = objective.metric, metrics.name_of(objective.metric)
    if any(metric is known for known in metrics.METRICS.values()):
        return name
    at_one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), objective.labels)

    def with_slope(logits: Any, labels: Any) -> Any:
        value, pull = jax.vjp(lambda logits: metric(logits, labels), logits)
        return value, pull(jax.numpy.ones_like(value))

    try:
        traced = _traced(with_slope, at_one.full, at_one)
    except (TypeError, ValueError, NotImplementedError):  # it has none, and no method takes it
        traced = _traced(metric, at_one.full, at_one)
    return f"{name}-{traced}"


def _traced(function: Callable[..., Any], *given: Any) -> str:
    """The digest of what a function computes of such arguments, and from which constants."""
    traced = jax.make_jaxpr(function)(*given)
    return f"{_of_text(str(traced.jaxpr))}-{digest(map(_plain, _constants(traced)))}"


def _constants(traced: Any) -> Iterator[Any]:
    """Those of a jaxpr and of all within it, of which its text has some. Raises ValueError for a call to Python."""
    yield from getattr(traced, "consts", ())
    for equation in getattr(traced, "jaxpr", traced).eqns:
        if "callback" in equation.primitive.name:
            raise ValueError(f"checkpoint: expected a metric and a model in JAX alone, got a {equation.primitive.name}")
        yield from (value.val for value in equation.invars if hasattr(value, "val"))
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _constants(inner)


def _plain(constant: Any) -> np.ndarray:
    is_key = hasattr(constant, "dtype") and jax.numpy.issubdtype(constant.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(constant) if is_key else constant)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def _of_text(text: str) -> str:
    """Its digest, whatever the places of objects in memory are."""
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()[:8]
