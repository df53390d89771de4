"""Error bars: each replicate is the search on its own prompts; intervals and certificates are what they say."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs
from scipy import stats
from test_units import make

import jaxcircuits as jc
from jaxcircuits.discovery.acdc import searched
from jaxcircuits.discovery.judges import Judges
from jaxcircuits.resampling import interval_of


def objective_of(name="gpt2", **pairs):
    model = micro_model(name, dtype=jnp.float64) if name == "gpt2" else make(name)
    return jc.Objective(model, micro_pairs(**pairs), "kl")


def decided(result):
    return [(d.name, d.removed) for d in result.decisions]


@pytest.mark.mission
@pytest.mark.parametrize("name", ["gpt2", "grouped", "post-norm"])
@pytest.mark.parametrize("resample", ["bootstrap", "keep"])
def test_each_replicate_is_the_search_on_its_prompts_alone(name, resample, x64):
    objective = objective_of(name, batch=6)
    found = jc.replicates(objective, 0.05, count=7, resample=resample, q=0.5, seed=3, width=4)
    plain = jc.acdc(objective, 0.05, width=4)
    assert decided(found.full) == decided(plain)
    assert len({mask.tobytes() for mask in found.masks}) > 1
    for counts, mask, metric in zip(found.counts, found.masks, found.metrics, strict=True):
        if counts.any():
            copied = jc.acdc(objective.take(np.repeat(np.arange(6), counts)), 0.05, width=4)
            np.testing.assert_array_equal(mask, copied.mask)
            weighed = jc.acdc(objective, 0.05, prompt_weights=counts, width=1)
            assert decided(weighed) == decided(copied)
            # `take` keeps the prompts' weights, which are those of six prompts
            assert abs(metric - weighed.metric_final) < 1e-10
        else:
            assert not mask.any()


@pytest.mark.mission
def test_equal_weights_are_the_plain_run_at_any_width(x64):
    objective = objective_of()
    plain = jc.acdc(objective, 0.05, width=16)
    for width in (1, 4, 16):
        equal = jc.acdc(objective, 0.05, prompt_weights=[3] * 5, width=width)
        assert decided(equal) == decided(plain)
        np.testing.assert_allclose([d.after for d in equal.decisions], [d.after for d in plain.decisions], atol=1e-12)
    masks = [jc.replicates(objective, 0.05, count=5, seed=1, width=width).masks for width in (1, 4, 16)]
    for other in masks[1:]:
        np.testing.assert_array_equal(other, masks[0])


@pytest.mark.mission
def test_a_weighted_metric_is_the_mean_over_the_positions_of_the_prompts_that_count(x64):
    pairs = micro_pairs(kind="positions", batch=5)
    model = micro_model("gpt2", dtype=jnp.float64)
    rows = [0, 2, 3]
    some = {field: getattr(pairs, field)[rows] for field in ("clean", "corrupt", "answer", "wrong", "positions")}
    some = jc.Objective(model, jc.PromptPairs(**some), "kl")
    weighed = jc.acdc(jc.Objective(model, pairs, "kl"), 0.05, prompt_weights=[1, 0, 1, 1, 0])
    alone = jc.acdc(some, 0.05)
    assert decided(weighed) == decided(alone)
    assert abs(weighed.metric_final - alone.metric_final) < 1e-12
    assert weighed.options["prompt_weights"] == [1, 0, 1, 1, 0]


def test_intervals_are_clopper_and_pearsons():
    kept = np.array([0, 1, 13, 19, 20])
    low, high = interval_of(kept, 20, 0.9)
    for number, *ends in zip(kept, low, high, strict=True):
        exact = stats.binomtest(int(number), 20).proportion_ci(0.9, method="exact")
        np.testing.assert_allclose(ends, [exact.low, exact.high], atol=1e-12)


@pytest.mark.mission
def test_certificates_are_the_schemes(x64):
    """q = 0.9 and a lower end of 0.99 certify 6 replaced and 37 deleted prompts (2602.22968's scheme)."""
    found = jc.replicates(objective_of(), 0.05, count=3, resample="keep", seed=0)
    kept = np.zeros(found.graph.shape, int)
    kept[0, 0], kept[0, 1] = 500, 1000
    object.__setattr__(found, "kept", kept)
    object.__setattr__(found, "masks", np.zeros((1000, 1, 1), bool))
    object.__setattr__(found, "counts", np.zeros((1000, 100), int))
    tail = 2 * (1 - stats.binomtest(1000, 1000).proportion_ci(0.95, method="exact").low)
    certified = found.certificates()
    most = {name: table[0, 1] for name, table in certified.items()}
    assert most["deleted"] == np.ceil(np.log(tail) / np.log(0.9)) - 1
    mu = 0.99
    confidence = 1 - 2 * mu**1000  # all of 1,000, so that the lower end is mu
    at = {name: table[0, 1] for name, table in found.certificates(confidence).items()}
    assert at == {"replaced": 6, "deleted": 37}
    assert {table[0, 0] for table in certified.values()} == {-1}
    with pytest.raises(ValueError, match="resample='keep'"):
        jc.replicates(objective_of(), 0.05, count=1).certificates()


@pytest.mark.mission
def test_no_change_of_the_prompts_contradicts_a_certificate(x64):
    """Every subset of seven prompts is searched: the share of each edge is known for any prompts, not sampled."""
    q, pool, used = 0.3, 7, 5
    objective = objective_of(batch=pool)
    subsets = np.array(list(itertools.product([0, 1], repeat=pool)))
    judges = Judges.of(objective, 0.05, subsets[1:])
    kept = np.array([np.zeros(objective.graph.shape, bool), *(r.mask for r in searched(objective, judges))])

    def shares(prompts):
        among = ~subsets[:, [p for p in range(pool) if p not in prompts]].any(1)
        size = subsets[among].sum(1)
        return np.tensordot((1 - q) ** size * q ** (len(prompts) - size), kept[among], 1)

    first = shares(range(used))
    mu = np.maximum(first, 1 - first)
    certified, changed = 0, 0
    for r in range(1, 3):
        least = {"deleted": 2 * (1 - mu) < q**r, "replaced": mu > 3 / 2 - q**r}
        for gone in itertools.combinations(range(used), r):
            rest = [p for p in range(used) if p not in gone]
            for name, new in (("deleted", rest), ("replaced", [*rest, *range(used, used + r)])):
                is_other = (shares(new) > 0.5) != (first > 0.5)
                assert not (is_other & least[name] & objective.graph.valid).any()
                certified += int((least[name] & objective.graph.valid).sum())
                changed += int(is_other.sum())
    assert certified > 100 and changed > 0


@pytest.mark.mission
def test_intervals_cover_the_share_that_more_prompts_would_show(x64):
    """95 % intervals of 30 replicates, against 2,000 other ones of the same prompts: three standard errors."""
    objective = objective_of(batch=6)
    found = jc.replicates(objective, 0.05, count=2000, seed=1)
    truth, rng = found.shares, np.random.default_rng(0)
    unsure = (truth > 0.02) & (truth < 0.98)
    assert unsure.sum() >= 3
    covered = []
    for _ in range(200):
        drawn = found.masks[rng.integers(0, 2000, 30)].sum(0)
        low, high = interval_of(drawn, 30)
        covered.append(((low <= truth) & (truth <= high))[unsure].mean())
    assert np.mean(covered) > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.mission
def test_a_file_keeps_the_shares_and_chooses_by_them(tmp_path, x64):
    objective = objective_of(batch=6)
    found = jc.replicates(objective, 0.05, count=20, seed=0)
    circuit = jc.Circuit.of(found)
    circuit.save(tmp_path / "circuit.json")
    again = jc.Circuit.load(tmp_path / "circuit.json")
    np.testing.assert_allclose(again.shares, found.shares, atol=1e-12)
    np.testing.assert_array_equal(again.mask, found.full.mask)
    sure = jc.Circuit.select(again, at_least=0.9)
    np.testing.assert_array_equal(sure.mask, objective.graph.drop_dead_ends(found.core(0.9)))
    assert sure.run["selection"] == {"at_least": 0.9, "greedy": False}
    assert "metric_final" in again.run and "metric_final" not in sure.run  # it is another circuit's
    record = again.run["replicates"]
    assert record["edges"] == found.masks.sum((1, 2)).tolist() and record["count"] == 20
    assert jc.Circuit.of(found.full).shares is None
    with pytest.raises(ValueError, match="a circuit with replicates"):
        jc.Circuit.select(jc.Circuit.of(found.full), at_least=0.9)
    value = json.loads((tmp_path / "circuit.json").read_text())
    value["run"]["replicates"] = {}
    (tmp_path / "wrong.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="replicates: count"):
        jc.Circuit.load(tmp_path / "wrong.json")
    for wrong in ({"count": 0}, {"kept": {"input->nowhere": 1}}, {"kept": {"input->logits": 21}}, {"edges": ["x"]}):
        value["run"]["replicates"] = {**record, **wrong}
        (tmp_path / "wrong.json").write_text(json.dumps(value))
        with pytest.raises(ValueError, match="wrong.json"):
            jc.Circuit.load(tmp_path / "wrong.json")


@pytest.mark.mission
def test_replicates_go_on_where_they_were_stopped(tmp_path, x64):
    objective = objective_of(batch=6)
    whole = jc.replicates(objective, 0.005, count=6, seed=2, width=4)
    seen = []

    def stop(progress):
        seen.append(progress.edges_done)
        if 46 in seen[:-3]:  # the full run is done, the replicates are in their third round
            raise KeyboardInterrupt

    options = {"count": 6, "seed": 2, "width": 4, "checkpoint": tmp_path / "kept"}
    with pytest.raises(KeyboardInterrupt):
        jc.replicates(objective, 0.005, **options, on_progress=stop)
    assert 0 < max(seen[seen.index(46) + 1 :]) < 46
    calls, done = [], []
    again = jc.replicates(objective, 0.005, **options, on_progress=calls.append)
    np.testing.assert_array_equal(again.masks, whole.masks)
    np.testing.assert_array_equal(again.metrics, whole.metrics)
    finished = jc.replicates(objective, 0.005, **options, on_progress=done.append)
    np.testing.assert_array_equal(finished.masks, whole.masks)
    assert calls and not done
    with pytest.raises(ValueError, match="replicates.seed was 2, now 3"):
        jc.replicates(objective, 0.005, **{**options, "seed": 3})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "count"),
        ({"resample": "jackknife"}, "resample: expected one of bootstrap, keep"),
        ({"q": 1.0}, "q: expected"),
        ({"prompt_weights": [1] * 5}, "weigh the prompts themselves"),
    ],
)
def test_what_makes_no_replicates_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        jc.replicates(jc.Objective(micro_model("gpt2"), micro_pairs(), "kl"), 0.05, **options)


@pytest.mark.parametrize("weights", [[1] * 4, [0] * 5, [1, 1, 1, 1, -1], [1, 1, 1, 1, np.nan]])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="prompt_weights"):
        jc.acdc(jc.Objective(micro_model("gpt2"), micro_pairs(), "kl"), 0.05, prompt_weights=weights)


@pytest.mark.mission
def test_the_command_says_how_sure_each_edge_is(run, tmp_path):
    file = tmp_path / "circuit.json"
    code, printed, _ = run(
        "discover",
        "ioi",
        "--size",
        3,
        "--threshold",
        1,
        "--replicates",
        4,
        "--out",
        file,
        "--report",
        tmp_path / "p.html",
    )
    assert (
        code == 0
        and "4 bootstrap replicates:" in printed
        and "Jaccard to that of all prompts:" in printed
        and "%)" in printed
    )
    code, shown, _ = run("show", file)
    assert code == 0 and shown.strip() in printed
    assert jc.Circuit.load(file).run["replicates"]["count"] == 4


def test_show_says_what_stays_under_changed_prompts(run, tmp_path):
    """200 of 200 at q = 0.9: mu is 0.9817, 0.9 ** 6 > 1.5 - mu > 0.9 ** 7, and 31 deleted are more than there are."""
    graph = micro_model("gpt2").graph
    mask = np.zeros(graph.shape, bool)
    mask[tuple(graph.edges[0])] = True
    name = graph.edge_name(*graph.edges[0])
    record = {"count": 200, "resample": "keep", "left_out": 0.9, "kept": {name: 200}}
    record |= {"edges": [1], "metrics": [0.5], "jaccards": [1.0]}
    jc.Circuit(graph, mask, mask * 1.0, {"prompts": 12, "replicates": record}).save(tmp_path / "sure.json")
    code, printed, error = run("show", tmp_path / "sure.json")
    assert code == 0, error
    said = "of 1 edges that most of them keep, surely stay: 1 if any 1, 1 if any 2, 1 if any 4"
    assert f"{said} of the prompts are replaced\n" in printed
    assert f"{said}, 1 if any 8 of the prompts are deleted\n" in printed
    text = (tmp_path / "sure.json").read_text().replace('"left_out": 0.9', '"left_out": 1')
    (tmp_path / "sure.json").write_text(text)
    with pytest.raises(ValueError, match="left_out: expected a share above 0 and below 1, got 1"):
        jc.Circuit.load(tmp_path / "sure.json")
