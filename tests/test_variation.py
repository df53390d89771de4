"""Variance components: of the mean, in closed form; of what a choice does not touch, 0; by the command line."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs

import jaxcircuits as jc

PROMPTS = 12


@pytest.fixture
def objective(x64):
    return jc.Objective(micro_model("one-head", dtype=jnp.float64), micro_pairs(batch=PROMPTS), "logit_diff")


def scores_of(objective, value):
    """Scores that all are one number."""
    graph = objective.graph
    values = np.where(graph.valid, float(value), 0.0)
    return jc.Scores(graph=graph, values=values, signed=True, method="test", run={"method": "test"})


def mean_loss(objective):
    return scores_of(objective, objective(objective.graph.valid))


def by_choice(record):
    return {component.choice: component for component in record.components}


def test_groups_of_one_prompt_give_the_variance_of_a_mean(objective):
    """The delete-one jackknife of a mean is `s^2 / n` exactly (Efron and Stein, 1981)."""
    found = by_choice(jc.variation(objective, mean_loss, bootstrap=0, corruptions=0, groups=np.arange(PROMPTS)))
    losses = np.asarray(objective.per_example(objective.graph.valid))
    expected = losses.var(ddof=1) / PROMPTS * objective.graph.num_edges
    assert found["groups"].variance == pytest.approx(expected, rel=1e-9)
    assert found["groups"].runs == PROMPTS and found["groups"].likeness is None


@pytest.mark.mission
def test_the_bootstrap_comes_to_the_variance_of_a_mean(objective):
    """`s^2 (n - 1) / n^2`, within 5 standard errors of a variance of 400 draws."""
    found = by_choice(jc.variation(objective, mean_loss, bootstrap=400, corruptions=0))["prompts"]
    losses = np.asarray(objective.per_example(objective.graph.valid))
    expected = losses.var() / PROMPTS * objective.graph.num_edges
    assert abs(found.variance / expected - 1) < 5 * np.sqrt(2 / 399)


@pytest.mark.mission
def test_prompts_drawn_twice_count_twice_where_positions_are_counted_together(x64):
    """As an objective that is made of the drawn prompts, of which some have more scored positions."""
    pairs = micro_pairs(batch=PROMPTS, kind="positions")
    objective = jc.Objective(micro_model("one-head", dtype=jnp.float64), pairs, "logit_diff")
    found = []
    jc.variation(objective, lambda o: found.append(o) or mean_loss(o), bootstrap=2, corruptions=0, seed=3)
    for rows, taken in zip(np.random.default_rng(3).integers(0, PROMPTS, (2, PROMPTS)), found[1:], strict=True):
        made = jc.Objective(objective.model, pairs[rows], "logit_diff")
        mask = objective.graph.valid * np.linspace(0, 1, objective.graph.valid.shape[1])
        assert float(taken(mask)) == pytest.approx(float(made(mask)), rel=1e-12)


def test_what_a_choice_does_not_touch_does_not_vary(objective):
    record = jc.variation(objective, mean_loss, bootstrap=3, corruptions=3)
    found = by_choice(record)
    assert found["corruptions"].variance < 1e-25 * found["prompts"].variance
    assert record.shares == pytest.approx({"prompts": 1.0, "corruptions": 0.0})


@pytest.mark.mission
def test_every_prompt_gets_the_corrupt_version_of_another_of_its_length(x64):
    pairs = micro_pairs(batch=PROMPTS, kind="lengths")
    objective = jc.Objective(micro_model("one-head", dtype=jnp.float64), pairs, "logit_diff")
    seen = []
    jc.variation(objective, lambda o: seen.append(o) or jc.eap(o), bootstrap=0, corruptions=3)
    for exchanged in seen[1:]:
        corrupt = np.asarray(exchanged.corrupt)
        origin = [int(np.flatnonzero((pairs.corrupt == row).all(1))[0]) for row in corrupt]
        alone = {length for length in pairs.length if (pairs.length == length).sum() == 1}
        moved = [number for number, old in enumerate(origin) if number != old]
        assert moved == [number for number in range(PROMPTS) if pairs.length[number] not in alone]
        assert sorted(origin) == list(range(PROMPTS)) and (pairs.length[origin] == pairs.length).all()
        made = jc.Objective(objective.model, jc.PromptPairs(**{**vars(pairs), "corrupt": corrupt}), "logit_diff")
        np.testing.assert_allclose(jc.eap(exchanged).values, jc.eap(made).values, rtol=1e-9, atol=1e-12)


def test_circuits_vary_by_what_is_in_them(objective):
    """Half of the seeds keep one edge more."""
    graph = objective.graph

    def method(objective, seed=0):
        mask = graph.valid.copy()
        mask[tuple(graph.edges[0])] = seed % 2
        return jc.Circuit(graph, mask, np.where(mask, 1.0, 0.0), {})

    found = by_choice(jc.variation(objective, method, bootstrap=0, corruptions=0, seeds=4))["seeds"]
    assert found.variance == pytest.approx(1 / 3)  # of 1, 0, 1, 0
    edges = graph.num_edges
    assert found.edges == (edges - 1, edges) and found.likeness == pytest.approx(
        ((1 + (edges - 1) / edges) / 2, 1 - 1 / edges)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bootstrap": 1}, "bootstrap: expected a whole number, from 2"),
        ({"corruptions": 1}, "corruptions: expected a whole number, from 2"),
        ({"bootstrap": 0, "corruptions": 0}, "expected a choice to vary"),
        ({"groups": np.zeros(PROMPTS)}, "groups: expected at least 2, got 1"),
        ({"groups": np.arange(2)}, "groups: expected one a prompt"),
    ],
)
def test_refused(objective, options, said):
    with pytest.raises(ValueError, match=said):
        jc.variation(objective, jc.eap, **options)


def test_corruptions_need_corrupt_prompts(objective):
    zero = jc.Objective(objective.model, micro_pairs(batch=PROMPTS), "logit_diff", reference="zero")
    with pytest.raises(ValueError, match="corruptions: expected reference 'resample', got 'zero'"):
        jc.variation(zero, jc.eap)
    pairs = micro_pairs(batch=2)
    short = jc.PromptPairs(**{**vars(pairs), "length": np.array([3, 6])})
    with pytest.raises(ValueError, match="two prompts of one length"):
        jc.variation(jc.Objective(objective.model, short, "logit_diff"), jc.eap, bootstrap=0)


@pytest.mark.mission
def test_a_column_of_groups(run, tmp_path):
    """By the command line: templates of IOI as groups of a task file."""
    loaded = jc.load("tiny-gpt2")
    pairs = jc.tasks.by_name("ioi").generate(loaded.tokenizer, size=9, templates=3)
    rows = []
    for number in range(9):
        length = pairs.length[number]
        texts = {name: loaded.tokenizer.decode(getattr(pairs, name)[number][:length]) for name in ("clean", "corrupt")}
        answers = {name: loaded.tokenizer.decode(getattr(pairs, name)[number]) for name in ("answer", "wrong")}
        rows.append({**texts, **answers, "group": f"template {pairs.group[number]}"})
    (tmp_path / "ioi.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "variation.json"
    command = "vary", tmp_path / "ioi.jsonl", "--method", "eap", "--metric", "logit_diff", "--bootstrap", "3"
    code, printed, error = run(*command, "--corruptions", "2", "--out", out)
    assert code == 0, error
    assert [line.split()[0] for line in printed.splitlines()[2:5]] == ["prompts", "groups", "corruptions"]
    record = jc.read_record(out)
    assert record["kind"] == "variation" and record["run"]["method"] == "eap" and record["run"]["prompts"] == 9
    objective = jc.Objective(loaded.model, jc.PromptPairs.load(tmp_path / "ioi.jsonl", loaded.tokenizer), "logit_diff")
    expected = jc.variation(objective, jc.eap, bootstrap=3, corruptions=2, groups=pairs.group)
    found = [component["variance"] for component in record["components"]]
    assert found == pytest.approx([component.variance for component in expected.components], rel=1e-5)
    for wrong, said in (
        (["vary", "ioi"], "ACDC needs --threshold"),
        (["vary", "ioi", "--threshold", "1", "--method", "eap"], "--threshold is of ACDC"),
        (["vary", "ioi", "--method", "eap", "--seeds", "2"], "--seeds: expected a method with a seed"),
        (["vary", "ioi", "--method", "eap", "--groups", "--size", "4"], "ioi has no column `group`"),
        ([*command[:4], "--groups", "--size", "1"], "groups: expected at least 2, got 1"),
    ):
        code, _, error = run(*wrong)
        assert code == 1 and said in error, error
