"""The table of methods agrees with the functions, and reads hyperparameters as they are typed."""

import inspect

import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.discovery.methods import METHODS, by_name

LEARNT = {"seed": 0, "steps": 3000}
DEFAULTS = {
    "exact": {"width": 8},
    "eap-ig-inputs": {"steps": 5, "points": "public"},
    "eap-ig-activations": {"steps": 5},
    "eap-gp": {"steps": 5},
    "mask-ig": {"steps": 10},
    "cd-t": {"base": "mean", "width": 16},
    "atp-star": {"qk_fix": True, "grad_drop": True},
    "node-ig": {"steps": 10},
    "subnetwork-probing": {**LEARNT, "strength": 1.0, "on": "nodes", "rate": 0.001, "keep": 0.9, "batch": None},
    "edge-pruning": {
        **LEARNT,
        **{"sparsity": 0.95, "node_sparsity": None, "ramp": None, "warm_up": None},
        **{"rate": 0.8, "multiplier_rate": None, "decay": 0.01, "batch": 32},
    },
    "ugs": {**LEARNT, "strength": 0.001, "rate": 0.05, "start_at": 1.0, "samples": 12, "batch": 5},
    "mattr": {
        **{"optimiser": "adam", "steps": 5000, "rate": None, "sizes": "uniform", "loss": "objective"},
        **{"temperature": 0.5, "batch": 1, "seed": 0},
    },
    "random": {"seed": 0},
}
"""To change one changes results that name the method alone; of methods with a gradient `backward` is plain."""


PASSES = {
    "exact": (10, 0, True),
    "eap": (1, 1, True),
    "clean-corrupted": (3, 2, True),
    "eap-ig-inputs": (3, 2, True),
    "eap-ig-activations": (7, 6, True),
    "eap-gp": (6, 4, True),
    "mask-ig": (2, 2, True),
    "information-flow-routes": (2, 0, False),
    "hisp": (1, 1, False),
    "node-attribution": (1, 1, True),
    "node-ig": (2, 2, True),
    "random": (0, 0, False),
}
"""Forward and backward passes a prompt at 2 steps, of 8 edges and 3 groups of senders; whether scores have a sign."""


@pytest.mark.mission
@pytest.mark.parametrize("name", PASSES)
def test_scores_say_what_they_cost_and_whether_they_have_a_sign(name):
    objective, method = jc.Objective(micro_model("one-head"), micro_pairs(), "logit_diff"), METHODS[name]
    scores = method.run(objective, **({"steps": 2} if "steps" in method.defaults else {}))
    assert (scores.run["forward_passes"], scores.run["backward_passes"], scores.signed) == PASSES[name]


def test_defaults_stay():
    for name, method in METHODS.items():
        rules = {"backward": "plain"} if "backward" in method.ranges else {}
        assert method.defaults == DEFAULTS.get(name, {}) | rules, name


@pytest.mark.slow
def test_every_method_of_the_table_scores():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    for name, method in METHODS.items():
        options = {"steps": 3} if "batch" in method.defaults else {}  # learnt
        result = method.run(objective, **options)
        assert result.run["method"] == name and np.abs(result.scores).max() > 0
        assert {"seconds", "metric"} | method.defaults.keys() <= result.run.keys()
        assert jc.Circuit.of(result).graph == objective.graph


@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_what_the_function_takes(name):
    method = METHODS[name]
    assert method.ranges.keys() == method.defaults.keys()
    first, *rest = inspect.signature(method.run).parameters.values()
    assert first.name == "objective" and all(parameter.default is not parameter.empty for parameter in rest)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "KL" in method.refuses])
def test_what_the_table_says_it_refuses_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: kl to the model's own output"):
        METHODS[name].run(jc.Objective(micro_model("gpt2"), micro_pairs(), "kl"))


def test_hyperparameters_are_read_as_typed():
    assert by_name("eap-ig-inputs").read(["steps=7", "points=midpoint"]) == {"steps": 7, "points": "midpoint"}
    assert by_name("atp-star").read(["grad_drop=False"]) == {"grad_drop": False}
    assert by_name("eap").read([]) == {}
    assert by_name("edge-pruning").read(["node_sparsity=0.5"]) == {"node_sparsity": 0.5}
    assert by_name("edge-pruning").read(["node_sparsity=none", "steps=9"]) == {"node_sparsity": None, "steps": 9}


def test_what_is_refused():
    with pytest.raises(ValueError, match="unknown method 'acd': expected one of exact, eap"):
        by_name("acd")
    with pytest.raises(ValueError, match="unknown hyperparameter 'steps'; expected backward"):
        by_name("eap").read(["steps=3"])
    with pytest.raises(ValueError, match="unknown hyperparameter 'steps'; expected no hyperparameters"):
        by_name("information-flow-routes").read(["steps=3"])
    with pytest.raises(ValueError, match="steps: expected a whole number, got '2.5'"):
        by_name("mask-ig").read(["steps=2.5"])
    with pytest.raises(ValueError, match="true or false"):
        by_name("atp-star").read(["qk_fix=1"])
    with pytest.raises(ValueError, match="NAME=VALUE"):
        by_name("mask-ig").read(["steps"])
