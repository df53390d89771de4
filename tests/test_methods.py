"""The table of methods agrees with the functions, and reads hyperparameters as they are typed."""

import inspect

import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc
from jaxcircuits.discovery.methods import METHODS, by_name


def test_every_method_of_the_table_scores():
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    for name, method in METHODS.items():
        scores = method.run(objective)
        assert scores.method == name and scores.values.any()
        assert {"seconds", "forward_passes", "metric"} | method.defaults.keys() <= scores.run.keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_what_the_function_takes(name):
    method = METHODS[name]
    assert method.ranges.keys() == method.defaults.keys()
    first, *rest = inspect.signature(method.run).parameters.values()
    assert first.name == "objective" and all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "KL" in method.refuses])
def test_what_the_table_says_it_refuses_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: kl to the model's own output"):
        METHODS[name].run(jc.Objective(micro_model("gpt2"), micro_pairs(), "kl"))


def test_hyperparameters_are_read_as_typed():
    assert by_name("eap-ig-inputs").read(["steps=7", "points=midpoint"]) == {"steps": 7, "points": "midpoint"}
    assert by_name("atp-star").read(["grad_drop=False"]) == {"grad_drop": False}
    assert by_name("eap").read([]) == {}


def test_what_is_refused():
    with pytest.raises(ValueError, match="unknown method 'acd': expected one of exact, eap"):
        by_name("acd")
    with pytest.raises(ValueError, match="unknown hyperparameter 'steps'; expected no hyperparameters"):
        by_name("eap").read(["steps=3"])
    with pytest.raises(ValueError, match="steps: expected a whole number, got '2.5'"):
        by_name("mask-ig").read(["steps=2.5"])
    with pytest.raises(ValueError, match="true or false"):
        by_name("atp-star").read(["qk_fix=1"])
    with pytest.raises(ValueError, match="NAME=VALUE"):
        by_name("mask-ig").read(["steps"])
