"""GPT-2 XL without its weights: the order of a search, and what its compiled chain would take."""

import time

import equinox as eqx
import jax
import numpy as np
import pytest

import jaxcircuits as jc
from jaxcircuits import batching, chains, current_run, live, programs
from jaxcircuits.discovery.schedule import Walk, all_steps
from jaxcircuits.kinds import Units

XL = jc.GPT2Config(n_embd=1600, n_layer=48, n_head=25)


def test_millions_of_steps_are_walked_in_seconds():
    graph = jc.Graph.transformer(48, 25)
    start = time.perf_counter()
    steps = all_steps(graph)
    walk = Walk(steps)
    assert len(steps) == graph.num_edges + 3 * 48 * 25 and graph.num_edges == 2_235_025
    assert steps[0].name == "m47->logits" and steps[-1].name == "input->a0.h0<q>"
    upcoming, _ = walk.upcoming(lambda step: True, 64)
    assert [step.name for step in upcoming[:3]] == ["m47->logits", "a47.h24->logits", "a47.h23->logits"]
    while not walk.is_done:  # nothing is kept: one trial for each sender of logits, then every node is dead
        walk.take(True)
    assert walk.kept == 0 and not walk.mask.any()
    assert time.perf_counter() - start < 60


@pytest.mark.slow
def test_the_plan_of_a_chain_on_gpt2_xl_is_within_20_gib():
    """Weights, cached values and a chain of 4 on 4 prompts x 16 tokens, from the compiled program alone."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, XL.vocab_size, (2, 4, 16))
    pairs = jc.PromptPairs(clean=tokens[0], corrupt=tokens[1])
    model = eqx.filter_eval_shape(jc.GPT2.random, XL, jax.random.key(0))
    slots, width = live.SLOTS[0], 4

    def chain(model):
        objective = jc.Objective(model, pairs, "kl", microbatch=4)
        constants, logits = current_run.first_run(objective, None)
        current = current_run.empty(objective, units, logits, slots)
        changes = current_run.empty_changes(objective, units, slots, width)
        return objective, constants, current, changes

    units = Units(model.graph)
    objective, constants, current, changes = eqx.filter_eval_shape(chain, model)
    rest, fixed = batching.flattened((objective, units, constants))
    program = programs.empty_program(units, slots, width)
    plan = chains.run_chain.lower(rest, fixed, current, program, changes).compile().memory_analysis()
    inputs = fixed, current, program, changes
    is_abstract = lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(eqx.filter(inputs, is_abstract)))
    assert 6.2e9 < held < held + plan.temp_size_in_bytes + plan.output_size_in_bytes < 20 * 2**30
