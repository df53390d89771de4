"""Every compiled program of a run as a function and the shapes of its arguments: nothing is computed.

`programs` gives them; `aot.py` compiles them for chips that are not there, `exported` lowers them for all platforms.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from common import SIZES, random_pairs
from jax import export
from jax.sharding import Mesh

import jaxcircuits as jc
from jaxcircuits import batching, chains, current_run, device_loop, gradients, lockstep, losses, references, sparse
from jaxcircuits import programs as instructions
from jaxcircuits.batching import CANDIDATES, PROMPTS
from jaxcircuits.kinds import Units

SHAPES = SIZES | {
    "8b": jc.models.LlamaConfig(
        vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=8192
    )
}
"""Configs by name; the last has the shape of Llama 3 8B."""

AXES = {  # the end of an argument's path: how the library spreads it
    r"\.model\..*": (),
    r"\.(reference|written|difference|streams)": (None, PROMPTS),
    r"inputs\.(everywhere|scored)": (None, None, PROMPTS),
    r"(outputs|removed)\.(everywhere|scored)": (None, PROMPTS),
    r"changes\.(everywhere|scored)": (None, CANDIDATES, PROMPTS),
    r"tried\.logits": (CANDIDATES, PROMPTS),
    r"\.(clean|inside|weights|scored|logits|labels\..*)": (PROMPTS,),
}


TOGETHER = 4
"""Searches in one call of `run_chains`."""


class Program(NamedTuple):
    """A function, the shapes of its arguments by name, and the arguments that are updated in place."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    donated: tuple[str, ...] = ()

    def arrays(self) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
        """The arguments' arrays, and the function of these alone."""
        arrays, rest = eqx.partition(self.arguments, lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct))

        def of_arrays(kept: dict[str, Any], donated: dict[str, Any]) -> Any:
            out = self.function(**eqx.combine({**kept, **donated}, rest))
            return eqx.filter(out, eqx.is_array)

        return arrays, of_arrays

    def lowered(self, place: Callable[[str, Any], Any] = lambda path, leaf: leaf) -> Any:
        """Traced and lowered; `place` gives each array's shape its sharding."""
        arrays, function = self.arrays()
        arrays = jax.tree_util.tree_map_with_path(lambda path, x: place(jax.tree_util.keystr(path), x), arrays)
        donated = {name: arrays.pop(name) for name in self.donated}
        return jax.jit(function, donate_argnums=1).lower(arrays, donated)


def axes_of(path: str) -> tuple[str | None, ...]:
    """How the library spreads the argument at a path over devices."""
    path = re.sub(r"\['(\w+)'\]", r".\1", re.sub(r"\[\d+\]", "", path))
    return next((axes for end, axes in AXES.items() if re.search(f"({end})$", path)), ())


def abstract_objective(
    config: jc.GPT2Config | jc.models.LlamaConfig,
    prompts: int,
    length: int,
    metric: str,
    microbatch: int,
    precision: str = "highest",
) -> jc.Objective:
    """An objective whose arrays are shapes only."""
    pairs = random_pairs(prompts, length, config.vocab_size)

    family = jc.GPT2 if isinstance(config, jc.GPT2Config) else jc.models.Llama

    def make(key):
        model: Any = family.random(config, key)  # type: ignore[arg-type]
        return jc.Objective(model.computed(precision=precision), pairs, metric, microbatch=microbatch)

    return eqx.filter_eval_shape(make, jax.random.key(0))


def programs(of: jc.Objective, slots: int, width: int, mesh: Mesh | None = None) -> dict[str, Program]:
    """Every program of an objective without a mesh, as it is with one."""
    spread = eqx.tree_at(lambda o: o.clean, of, of.clean)
    object.__setattr__(spread, "mesh", mesh)
    mask, microbatch = _shape(of.graph.shape), of.microbatch
    points = {"held": _shape((5, of.graph.shape[0]), bool), "alphas": _shape((5,))}
    return {
        "sender_values": Program(lambda o: _raw(references.recorded)(o.model, o.clean, microbatch), {"o": spread}),
        "per_example": Program(_raw(losses.per_example), {"objective": spread, "mask": mask}),
        "many": Program(
            functools.partial(_raw(losses.many), width=8),
            {"objective": spread, "masks": _shape((8, *of.graph.shape), bool)},
        ),
        "gradient": Program(_without_spans(gradients.value_and_gradient), {"objective": spread, "mask": mask}),
        "clean_gradient": Program(_without_spans(gradients.clean_gradient), {"objective": spread}),
        "eap_ig_inputs_5": Program(
            lambda o, held, alphas: _raw(gradients.displacement_gradient)(o, (held, alphas), None, None),
            {"o": spread, **points},
        ),
        **_of_chains(of, spread, slots, width),
        "sparse_base": Program(_raw(sparse._base), {"objective": spread}),
        "sparse_alone": Program(_raw(sparse._alone), {"objective": spread}),
    }


def _of_chains(of: jc.Objective, spread: jc.Objective, slots: int, width: int) -> dict[str, Program]:
    """ACDC's."""
    units = Units(of.graph)
    constants, logits = eqx.filter_eval_shape(current_run.first_run, of, None)
    current = eqx.filter_eval_shape(current_run.empty, of, units, logits, slots)
    changes = eqx.filter_eval_shape(current_run.empty_changes, of, units, slots, width)
    numbers = _shape(instructions.empty_program(units, slots, width).shape, jnp.int32)
    tried = eqx.filter_eval_shape(_run_chain, (of, units, constants), current, numbers, changes)[1]
    fixed = {"fixed": (spread, units, constants)}
    where = (_shape((2,), jnp.int32), _shape((units.width,), jnp.int32))
    edges = _shape((units.num_places, of.graph.shape[0]), bool)
    chain = {"program": numbers, "changes": changes}
    return {
        "first_run": Program(lambda o: current_run.first_run(o, None), {"o": spread}),
        "fill": Program(
            lambda fixed, where, edges, current: _raw(current_run.fill)((*fixed, where, edges), current),
            {**fixed, "where": where, "edges": edges, "current": current},
            ("current",),
        ),
        "run_chain": Program(_run_chain, {**fixed, "current": current, **chain}, ("changes",)),
        "run_loop": Program(_run_loop, {**fixed, "current": current, **chain, **_beside(of, width)}, ("changes",)),
        "run_chains": Program(
            _run_chains,
            {
                **fixed,
                "current": [current] * TOGETHER,
                "program": _shape((TOGETHER, *numbers.shape), jnp.int32),
                "changes": [changes] * TOGETHER,
            },
            ("changes",),
        ),
        "commit": Program(
            _commit,
            {**fixed, "program": numbers, "tried": tried, "last": _shape((), jnp.int32), "current": current},
            ("current",),
        ),
        "score": Program(_raw(chains.score), {"objective": spread, "x": _shape((1, *logits.shape))}),
    }


def _run_chain(fixed, current, program, changes):
    return _raw(chains.run_chain)(*batching.flattened(fixed), current, program, changes)


def _beside(of: jc.Objective, width: int) -> dict[str, Any]:
    trials, rule = device_loop.shapes_beside(width, of.num_prompts)
    return {"trials": _shape((trials,), jnp.int32), "rule": _shape((rule,))}


def _run_loop(fixed, current, program, trials, rule, changes):
    return _raw(device_loop.run_loop)(*batching.flattened(fixed), current, program, trials, rule, changes)


def _run_chains(fixed, current, program, changes):
    rest, arrays = batching.flattened(fixed)
    slots = current[0].inputs.scored.shape[0]
    return _raw(lockstep.run_chains)(rest, slots, arrays, current, program, changes)


def _commit(fixed, program, tried, last, current):
    return _raw(chains.commit)(*batching.flattened(fixed), program, tried, last, current)


def exported(program: Program) -> str:
    """The program lowered for CPU, CUDA and TPU at once: its text."""
    arrays, function = program.arrays()
    leaves, structure = jax.tree.flatten(arrays)

    def of_leaves(*leaves):
        return jax.tree.leaves(function(jax.tree.unflatten(structure, leaves), {}))

    return export.export(jax.jit(of_leaves), platforms=("cpu", "cuda", "tpu"))(*leaves).mlir_module()


def _without_spans(function: Any) -> Callable[..., Any]:
    return functools.partial(_raw(function), spans=None)


def _raw(function: Any) -> Callable[..., Any]:
    """Not compiled by itself."""
    return function.__wrapped__


def _shape(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
