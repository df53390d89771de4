"""The parts of methods.py on the bundled model: a step of MAttr, and rules of the backward pass, in turns, warm."""

import argparse
import time

import jax
import numpy as np
from common import compared, emit, in_turns, seconds_of
from methods_common import TURNS

import jaxcircuits as jc
from jaxcircuits.discovery.learning import learn
from jaxcircuits.discovery.mattr import MAttr
from jaxcircuits.models.backward import BACKWARD

CHUNK = 20
"""Steps, and masked gradients, of a turn."""


def bundled(prompts: int) -> jc.Objective:
    loaded = jc.load("tiny-gpt2")
    return jc.Objective(loaded.model, jc.tasks.by_name("ioi").generate(loaded.tokenizer, size=prompts), "logit_diff")


def time_mattr(options: argparse.Namespace) -> None:
    """Chunks of steps as `learn` takes them, what it does between chunks included, beside as many masked gradients."""
    for batch in (1, options.prompts):
        objective = bundled(options.prompts)
        some, mask, gradients, steps = objective.take(np.arange(batch)), objective.full_mask(), [], []

        def note(state: jc.State, some=some, mask=mask, gradients=gradients, steps=steps) -> None:
            nonlocal start
            jax.block_until_ready(state.parameters)
            steps.append(time.perf_counter() - start)
            gradients.append(seconds_of(lambda: [some.value_and_gradient(mask) for _ in range(CHUNK)]))
            start = time.perf_counter()

        learner, start = MAttr(0.5, 0.05, 1.0, "adam", "uniform", "objective"), time.perf_counter()
        learn(learner, objective, steps=CHUNK * (TURNS + 1), batch=batch, progress=note, chunk=CHUNK)
        seconds = {"step": steps[1:], "masked_gradient": gradients[1:]}
        each = {name: [value / CHUNK for value in values] for name, values in seconds.items()}
        emit(what="mattr", prompts=list(some.clean.shape), seconds=compared(each))


def time_backward(options: argparse.Namespace) -> None:
    """EAP by each rule of the backward pass beside plain EAP."""
    objective = bundled(options.prompts)
    runs = {name: (lambda name=name: jc.eap(objective, backward=name).values) for name in reversed(BACKWARD)}
    seconds = in_turns(4 * TURNS, **runs)
    plain = seconds["plain"]
    for name in runs:
        if name != "plain":
            emit(
                what="backward",
                rules=name,
                prompts=options.prompts,
                seconds=compared({name: seconds[name], "plain": plain}),
            )
