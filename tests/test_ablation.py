"""Each part of an ablation, against what it says done by hand."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs, random_mask
from test_gpt2 import by_hand

import jaxcircuits as jc
from jaxcircuits.evaluation import ablation


@pytest.fixture
def objective(x64):
    return jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "logit_diff")


def close(first, second):
    np.testing.assert_allclose(first, second, rtol=1e-10, atol=1e-12)


def test_edges_of_the_circuit_are_the_default(objective):
    mask = random_mask(objective.graph, 1) & objective.graph.valid
    judged = jc.ablated(objective)
    close(judged.losses(mask[None])[0], objective.per_example(mask))
    assert judged.describe()["ablation"] == {
        "granularity": "edge",
        "component": "all",
        "value": "resample",
        "positions": "all",
        "direction": "ablate",
        "set": "circuit",
        "reference_data": "corrupt prompts, pairwise",
        "reference_size": 5,
    }
    assert jc.ablated(judged) is judged


def test_nodes_keep_all_edges_out_of_them(objective):
    graph = objective.graph
    circuit = graph.mask_of(["input->a0.h1<v>", "a0.h1->m1", "m1->logits"])
    by_hand = np.zeros(graph.shape, bool)
    for name in ("input", "a0.h1", "m1"):
        by_hand[graph.sender_index(name)] = graph.valid[graph.sender_index(name)]
    close(jc.ablated(objective, granularity="node").losses(circuit[None])[0], objective.per_example(by_hand))


def test_the_complement_is_the_model_without_the_circuit(objective):
    mask = random_mask(objective.graph, 2) & objective.graph.valid
    judged = jc.ablated(objective, set="complement")
    close(judged.losses(mask[None])[0], objective.per_example(objective.graph.valid & ~mask))
    close(judged.baselines(), jc.ablated(objective).baselines())


@pytest.mark.quick(1)
@pytest.mark.parametrize("component, kept", [("heads", "m"), ("mlps", "a")])
def test_other_components_stay(component, kept, objective):
    graph = objective.graph
    mask = random_mask(graph, 3) & graph.valid
    by_hand = mask.copy()
    for row, name in enumerate(graph.senders):
        if name == "input" or name.startswith(kept):
            by_hand[row] = graph.valid[row]
    judged = jc.ablated(objective, component=component)
    close(judged.losses(mask[None])[0], objective.per_example(by_hand))
    assert not np.allclose(judged.baselines()[0], jc.ablated(objective).baselines()[0])


@pytest.mark.parametrize("units, component, nodes", [("neurons:3@0", "mlps", "m"), ("layers", "heads", "a")])
def test_a_component_is_its_nodes_whatever_the_units(units, component, nodes):
    graph = jc.with_units(micro_model("gpt2"), units).graph
    names = np.array(graph.senders)[jc.Ablation(component=component).replaced(graph)].tolist()
    assert names == [name for name in graph.senders if name.startswith(nodes)] and names


def test_restoring_puts_clean_values_into_the_corrupt_run(objective):
    """The same labels, roles swapped: with no circuit the corrupt run, with all of it the clean one."""
    pairs, graph = micro_pairs(), objective.graph
    judged = jc.ablated(objective, direction="restore", pairs=pairs)
    close(judged.baselines(), jc.ablated(objective).baselines())
    mask = random_mask(graph, 4) & graph.valid
    swapped = jc.PromptPairs(clean=pairs.corrupt, corrupt=pairs.clean, answer=pairs.answer, wrong=pairs.wrong)
    by_hand = jc.Objective(objective.model, swapped, "logit_diff").per_example(graph.valid & ~mask)
    close(judged.losses(mask[None])[0], by_hand)
    ablation = judged.describe()["ablation"]
    assert (ablation["direction"], ablation["value"]) == ("restore", "clean prompts")


@pytest.mark.mission
def test_restoring_compares_with_the_clean_run(x64):
    """Under KL the whole circuit loses nothing, although the run starts from corrupt prompts."""
    objective = jc.Objective(micro_model("gpt2", dtype=jnp.float64), micro_pairs(), "kl")
    empty, full = jc.ablated(objective, direction="restore", pairs=micro_pairs()).baselines()
    close(full, 0)
    close(empty, objective.per_example(np.zeros(objective.graph.shape)))


@pytest.mark.quick(1)
@pytest.mark.parametrize("direction", ["ablate", "restore"])
@pytest.mark.parametrize("positions, inside", [([(1, 4)], {1, 2, 3}), ([0, (4, 6)], {0, 4, 5})])
def test_edges_outside_the_positions_carry_what_is_running(direction, positions, inside, objective):
    """Circuits of many edges, their complement and no circuit, against a forward written by hand, prompt by prompt."""
    model, graph, pairs = objective.model, objective.graph, micro_pairs()
    circuits = np.stack([*(random_mask(graph, seed) & graph.valid for seed in range(3)), np.zeros_like(graph.valid)])
    judged = jc.ablated(objective, positions=positions, direction=direction, pairs=pairs, width=2)
    tokens, other = (pairs.clean, pairs.corrupt) if direction == "ablate" else (pairs.corrupt, pairs.clean)
    written = eqx.filter_jit(eqx.filter_vmap(model.sender_values))(jnp.asarray(other))
    unembed = eqx.filter_jit(model.unembed)
    outside = np.array([t not in inside for t in range(6)])
    for circuit, losses in zip(circuits, judged.losses(circuits), strict=True):
        runs = circuit if direction == "ablate" else ~circuit
        mask = runs[..., None] | outside
        for row, loss in enumerate(losses):
            residual = by_hand(model, tokens[row], mask, np.asarray(written[row]))
            logits = np.asarray(unembed(jnp.asarray(residual[-1])))
            wrong = [answer for answer in pairs.wrong[row] if answer >= 0]
            close(loss, logits[wrong].mean() - logits[pairs.answer[row]].mean())
    spans = tuple(span if isinstance(span, tuple) else (span, span + 1) for span in positions)
    assert judged.describe()["ablation"]["positions"] == spans


def test_positions_that_are_all_of_them_are_the_default(objective):
    assert jc.ablated(objective, positions=[(0, 2), (2, 6)]).ablation == jc.ablated(objective).ablation


@pytest.mark.mission
def test_replacing_at_one_position_is_less_than_at_all(objective):
    """No edge at the first position alone is neither the clean run nor the run without any edge."""
    empty = np.zeros((1, *objective.graph.shape), bool)
    everywhere, first = (jc.ablated(objective, positions=p).losses(empty)[0] for p in ("all", [0]))
    full = np.asarray(objective.per_example(objective.graph.valid))
    assert not np.allclose(first, full) and not np.allclose(first, everywhere)


def test_a_width_that_does_not_divide_gives_the_same(objective):
    masks = np.stack([random_mask(objective.graph, seed) for seed in range(5)])
    for width in (1, 2):
        close(jc.ablated(objective, width=width).losses(masks), jc.ablated(objective, width=16).losses(masks))


@pytest.mark.mission
def test_circuits_of_few_edges_run_by_their_live_nodes(objective, monkeypatch):
    """Mixed with large ones, in any direction: the same losses; at some positions all are dense."""
    graph, pairs = objective.graph, micro_pairs()
    circuits = np.concatenate([jc.random_circuits(graph, 5, 3), jc.random_circuits(graph, 30, 2)])[[0, 3, 1, 4, 2]]
    monkeypatch.setattr(ablation, "FEW", 6 / graph.num_edges)
    ran = []
    run = jc.SparseEvaluator.per_example_many
    monkeypatch.setattr(
        jc.SparseEvaluator, "per_example_many", lambda self, *inputs: ran.append(len(inputs[0])) or run(self, *inputs)
    )
    for parts, few in (({}, [3]), ({"positions": [1]}, []), ({"direction": "restore", "set": "complement"}, [3])):
        judged = jc.ablated(objective, pairs=pairs, width=3, **parts)
        close(judged.losses(circuits, exchangeable=False), judged.losses(circuits))
        assert ran == few
        ran.clear()
    results = jc.faithfulness_many(jc.ablated(objective, width=3), circuits)
    assert ran == [3]
    jc.faithfulness_many(jc.ablated(objective, width=4), circuits)  # too few of them to be worth a program
    assert ran == [3]
    close([result.loss.mean for result in results], [float(objective(circuit)) for circuit in circuits])


def test_what_is_refused(objective):
    with pytest.raises(ValueError, match="granularity: expected one of edge, node, got 'neuron'"):
        jc.ablated(objective, granularity="neuron")
    with pytest.raises(ValueError, match="positions: expected 'all' or spans"):
        jc.Ablation(positions="last")
    for positions in ([(2, 7)], [(3, 3)], [6], [(1, 2, 3)]):
        with pytest.raises(ValueError, match="expected positions 0 to 5 or spans"):
            jc.ablated(objective, positions=positions)
    with pytest.raises(ValueError, match="at least one position"):
        jc.ablated(objective, positions=[])
    with pytest.raises(ValueError, match="unknown parts .'value'."):
        jc.ablated(objective, value="zero")
    with pytest.raises(ValueError, match="width"):
        jc.ablated(objective, width=0)
    for pairs in (None, micro_pairs(seed=1)):
        with pytest.raises(ValueError, match="needs the prompts"):
            jc.ablated(objective, direction="restore", pairs=pairs)
    zero = jc.Objective(objective.model, micro_pairs(), "logit_diff", "zero")
    with pytest.raises(ValueError, match="expected reference 'resample', got 'zero'"):
        jc.ablated(zero, direction="restore", pairs=micro_pairs())
