"""A folder keeps how far a run is: the same run goes on from there to the same bits; any other is refused by name."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
import types
from importlib import metadata
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_model, micro_pairs, random_mask

import jaxcircuits as jc
from jaxcircuits.identity import identity_of, runtime_of
from jaxcircuits.savepoint import Journal, Savepoint, differences


class Killed(BaseException):
    """Stands for the end of a process."""


def keep(folder, number=3):
    with Savepoint(folder, {"number": number}) as point:
        point.put(
            "state",
            {"a": [1, 2.5, None, "é"]},
            {"x": np.arange(6.0).reshape(2, 3), "y": np.zeros((0, 4), bool), "z": np.int32(5)},
        )


def test_what_is_got_is_what_was_put(tmp_path):
    keep(tmp_path / "run")
    with Savepoint(tmp_path / "run", {"number": 3}) as point:
        assert point.get("nothing") is None
        record, arrays = point.get("state")
        assert record == {"a": [1, 2.5, None, "é"]} and list(arrays) == ["x", "y", "z"]
        np.testing.assert_array_equal(arrays["x"], np.arange(6.0).reshape(2, 3))
        assert arrays["z"].shape == () and arrays["z"] == 5
        assert arrays["y"].shape == (0, 4) and arrays["y"].dtype == bool
        point.keep_only([])
        assert point.get("state") is None and point.get("run") is not None


def test_every_damage_is_told(tmp_path):
    """Each byte changed, each length cut: never anything else than a ValueError that names the file."""
    keep(tmp_path)
    for name in ("state", "run"):
        path = tmp_path / f"{name}.state"
        whole = path.read_bytes()
        damaged = [whole[:length] for length in range(len(whole))]
        damaged += [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(len(whole))]
        for wrong in damaged:
            path.write_bytes(wrong)
            with pytest.raises(ValueError, match=f"{name}.state is damaged.*remove"):
                with Savepoint(tmp_path, {"number": 3}) as point:
                    point.get(name)
        path.write_bytes(whole)


def test_another_run_is_refused_by_the_name_of_what_differs(tmp_path):
    identity = {"threshold": 0.1, "versions": {"jax": "1"}, "seed": 0}
    Savepoint(tmp_path, identity).__exit__(None, None, None)
    with pytest.raises(ValueError, match=r"threshold was 0.1, now 0.2; choose another"):
        Savepoint(tmp_path, {**identity, "threshold": 0.2})
    with pytest.raises(ValueError, match=r'versions.jax was "1", now "2"; more was null, now 1'):
        Savepoint(tmp_path, {**identity, "versions": {"jax": "2"}, "more": 1})
    Savepoint(tmp_path, identity).__exit__(None, None, None)


def test_another_runtime_is_another_version():
    """Of a TPU libtpu compiles, of a card CUDA's plugin: jaxlib may stay as it is."""
    client = types.SimpleNamespace(platform_version="cl/831")
    assert runtime_of(types.SimpleNamespace(platform="tpu", client=client)) == {"runtime": "cl/831"}
    assert runtime_of(jax.devices("cpu")[0]) == {}


def test_one_process_at_a_time(tmp_path):
    with Savepoint(tmp_path, {}):
        with pytest.raises(ValueError, match="in use by another process"):
            Savepoint(tmp_path, {})
    Savepoint(tmp_path, {}).__exit__(None, None, None)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="has other files"):
        Savepoint(tmp_path, {})
    with pytest.raises(ValueError, match="is a file"):
        Savepoint(tmp_path / "thesis.tex", {})


def test_it_saves_at_milestones_and_in_time(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr("jaxcircuits.savepoint.time.monotonic", lambda: now[0])

    def save():
        saved.append(now[0])
        now[0] += 0.1

    with Savepoint(tmp_path, {}) as point:
        for moment, milestone in ((1, True), (2, True), (2.9, True), (3.2, True), (20, False), (33.4, False)):
            now[0] = moment
            point.reached(save, milestone=milestone)
    assert saved == [1, 3.2, 33.4]  # a save of 0.1 s may be repeated after 2 s


def test_a_disk_that_is_full_is_told_once_and_the_run_goes_on(tmp_path):
    def fail():
        raise OSError(28, "No space left on device")

    with Savepoint(tmp_path, {}) as point:
        with pytest.warns(UserWarning, match="No space left on device; the run goes on unsaved") as told:
            point.save(fail)
            point.save(fail)
        assert len(told) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_next_moment_and_is_told_how_to_go_on(tmp_path, number):
    done = []

    def stop(*_):
        raise Killed

    before = signal.signal(number, stop)
    try:
        with pytest.raises(Killed) as end:
            with Savepoint(tmp_path, {}) as point:
                os.kill(os.getpid(), number)
                done.append("rest of the step")
                point.reached(lambda: done.append("saved"), milestone=False)
                done.append("never")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert done == ["rest of the step", "saved"]
    assert end.value.__notes__ == [f"what is done is kept in {tmp_path}, and the same command goes on from there"]


def test_a_signal_inside_another_savepoint_saves_both(tmp_path):
    def stop(*_):
        raise Killed

    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(Killed):
            with Savepoint(tmp_path / "outer", {}) as outer, Journal(outer) as journal:
                journal.call("a", lambda: 1)
                with Savepoint(tmp_path / "inner", {}) as inner:
                    os.kill(os.getpid(), signal.SIGINT)
                    inner.reached(lambda: inner.put("state", 1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "inner" / "state.state").exists()
    with Savepoint(tmp_path / "outer", {}) as outer, Journal(outer) as journal:
        assert journal.call("a", pytest.fail) == 1


def test_a_journal_gives_again_what_it_has(tmp_path):
    computed = []
    for steps in (2, 3, 3):
        with Savepoint(tmp_path, {}) as point, Journal(point) as journal:
            values = [journal.call(str(i), lambda i=i: computed.append(i) or np.full(2, i)) for i in range(steps)]
        np.testing.assert_array_equal(np.stack(values)[:, 0], np.arange(steps))
    assert computed == [0, 1, 2]
    with Savepoint(tmp_path, {}) as point, Journal(point) as journal:
        with pytest.raises(ValueError, match="results of another run"):
            journal.call("other", lambda: 1)


# --- ACDC ------------------------------------------------------------------------------------------


@pytest.fixture
def stops(monkeypatch):
    """Ends runs after so many moments at which they could save; every one is saved."""
    left = []

    def reached(self, save, *, milestone=True):
        self.save(save)
        if left:
            left[0] -= 1
            if not left[0]:
                left.clear()
                raise Killed

    monkeypatch.setattr(Savepoint, "reached", reached)
    return left


def same(first, second):
    timed = ("seconds", "seconds_compiling", "seconds_warm")
    first, second = ({k: v for k, v in r.run.items() if k not in timed} for r in (first, second))
    return json.dumps(first, default=str) == json.dumps(second, default=str)


SEARCHES = {
    "live": {"evaluator": jc.LiveEvaluator},
    "dense": {"evaluator": jc.DenseEvaluator, "absolute": True},
    "within": {"within": True, "head_order": "random", "seed": 3},
    "together": {"together": 4},
    "device": {},
    "by scores": {"predictor": "all_removed", "groups": False},
}


SLOW = [pytest.param(name, 2, marks=pytest.mark.slow) for name in SEARCHES]


@pytest.mark.mission
@pytest.mark.parametrize("name, every", [("live", 11), ("dense", 5), ("device", 5), *SLOW])
def test_a_search_stopped_anywhere_goes_on_to_the_same_bits(name, every, tmp_path, stops):
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    options = {"width": 4, **SEARCHES[name]}
    if "within" in options:
        options["within"] = random_mask(objective.graph, 0, 0.8) & objective.graph.valid
    thresholds = [0.3, 0.001, 0.05]
    whole = jc.acdc_sweep(objective, thresholds, **options)
    folder, parts = tmp_path / "run", 0
    for _ in range(200):
        stops[:] = [every]
        try:
            found = jc.acdc_sweep(objective, thresholds, **options, checkpoint=folder)
            break
        except Killed:
            parts += 1
    assert parts > 1
    assert all(same(ours, theirs) for ours, theirs in zip(whole, found, strict=True))
    assert {path.name for path in folder.iterdir()} == {"lock", "run.state", "searches.state"}


def test_a_search_that_is_done_is_not_run_again(tmp_path, monkeypatch):
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    first = jc.acdc(objective, 0.05, width=4, checkpoint=tmp_path)

    class Never(jc.DeviceEvaluator):
        def __init__(self, *_):
            raise AssertionError("run again")

    Never.__name__ = "DeviceEvaluator"
    seen = []
    again = jc.acdc(objective, 0.05, width=4, checkpoint=tmp_path, evaluator=Never, on_result=seen.append)
    assert same(first, again) and seen == [again] and again.seconds == first.seconds


@pytest.mark.mission
def test_what_would_change_a_search_is_refused_by_name(tmp_path, monkeypatch):
    model, pairs = micro_model("gpt2"), micro_pairs()
    base = jc.Objective(model, pairs, "logit_diff")
    jc.acdc(base, 0.05, checkpoint=tmp_path)
    others = {
        "model": jc.Objective(micro_model("gpt2", seed=1), pairs, "logit_diff"),
        "data": jc.Objective(model, micro_pairs(seed=1), "logit_diff"),
        "metric": jc.Objective(model, pairs, "nll"),
        "reference": jc.Objective(model, pairs, "logit_diff", "zero"),
        "prompts": jc.Objective(model, pairs[:3], "logit_diff"),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"keeps another run: .*{name} was .*, now"):
            jc.acdc(other, 0.05, checkpoint=tmp_path)
    changed = {"order": "first_last", "groups": False, "absolute": True, "order_seed": 1, "within": base.graph.valid}
    for name, value in changed.items():
        with pytest.raises(ValueError, match=f"{name} was "):
            jc.acdc(base, 0.05, checkpoint=tmp_path, **{name.removeprefix("order_") if "seed" in name else name: value})
    with pytest.raises(ValueError, match=r"thresholds was \[0.05\], now \[0.06\]"):
        jc.acdc(base, 0.06, checkpoint=tmp_path)
    version = metadata.version
    for package in ("jaxcircuits", "jax", "jaxlib", "equinox", "numpy", "optax"):
        with monkeypatch.context() as other:
            other.setattr(metadata, "version", lambda name, new=package: "0.0.1" if name == new else version(name))
            with pytest.raises(ValueError, match=f'versions.{package} was ".*", now "0.0.1"'):
                jc.acdc(base, 0.05, checkpoint=tmp_path)


@pytest.mark.mission
def test_users_metrics_differ_by_what_they_do(tmp_path):
    model, pairs = micro_model("gpt2"), micro_pairs()

    def made(body, **scope):
        exec(f"def mine(logits, labels): return {body}", {"jnp": jnp, "scale": 1.0} | scope, scope)
        return jc.Objective(model, pairs, scope["mine"])

    def scaled(logits, labels, *, by):
        return logits[0] * by

    def partial(by):
        return jc.Objective(model, pairs, functools.partial(scaled, by=by))

    other = jnp.arange(made("0 * logits[0]").labels.full.shape[-1], dtype=np.float32)
    families = {
        "constant": [made("logits[0] * 1.0"), made("logits[0] * 2.0")],
        "name": [made("jnp.max(logits)"), made("jnp.min(logits)")],
        "within": [made("sum(x for x in [logits[0]])"), made("sum(2 * x for x in [logits[0]])")],
        "outside": [made("logits[0] * scale"), made("logits[0] * scale", scale=2.0)],
        "array": [made("logits @ scale", scale=other), made("logits @ scale", scale=2 * other)],
        "arguments": [partial(1.0), partial(2.0)],
    }
    for name, (first, second) in families.items():
        found = jc.acdc(first, 0.05, checkpoint=tmp_path / name)
        assert same(found, jc.acdc(first, 0.05, checkpoint=tmp_path / name))
        with pytest.raises(ValueError, match="metric was "):
            jc.acdc(second, 0.05, checkpoint=tmp_path / name)


# --- scores and judgements -------------------------------------------------------------------------


def in_parts(stops, every, run):
    """What `run` gives when it is stopped again and again; and how often it was."""
    for parts in range(200):
        stops[:] = [every]
        try:
            result = run()
            stops.clear()
            return result, parts
        except Killed:
            continue
    raise AssertionError("it never ends")


@pytest.mark.mission
def test_exact_patching_goes_on_to_the_same_bits(tmp_path, stops):
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    for number, options in enumerate(({"width": 4}, {"width": 4, "positions": [(0, 2), (3, 6)]})):
        whole = jc.exact(objective, **options)
        found, parts = in_parts(stops, 3, lambda options=options: jc.exact(objective, **options, checkpoint=tmp_path))
        np.testing.assert_array_equal(found.values, whole.values)
        assert parts > 2
        with pytest.raises(ValueError, match="width was 4, now 3"):
            jc.exact(objective, **{**options, "width": 3}, checkpoint=tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()
        assert not number or found.positions == ((0, 2), (3, 6))


@pytest.mark.mission
@pytest.mark.parametrize("keeps", [True, False])
def test_replicates_of_scores_go_on_to_the_same_bits(keeps, tmp_path, stops):
    """A prompt that is kept is not scored again, whether the method keeps something itself or not.

    Another method is refused by what it found or says.
    """
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")
    seen = []

    def exact(objective, *, checkpoint=None):
        seen.append(objective.num_prompts)
        return jc.exact(objective, checkpoint=checkpoint)

    def eap(objective):
        seen.append(objective.num_prompts)
        return jc.eap(objective)

    method = exact if keeps else eap
    whole, kept = jc.score_replicates(objective, method, count=9), tmp_path / "kept"
    found, parts = in_parts(stops, 2, lambda: jc.score_replicates(objective, method, count=9, checkpoint=kept))
    np.testing.assert_array_equal(found.each, whole.each)
    np.testing.assert_array_equal(found.full.values, whole.full.values)
    assert parts > (5 if keeps else 1)
    seen.clear()
    again = jc.score_replicates(objective, method, count=9, checkpoint=kept)
    np.testing.assert_array_equal(again.each, whole.each)
    assert seen == [5]
    with pytest.raises(ValueError, match="method.method was"):
        jc.score_replicates(objective, jc.eap_ig_inputs, count=9, checkpoint=kept)


@pytest.mark.mission
def test_a_conditional_score_goes_on_to_the_same_bits(tmp_path, stops):
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(), "logit_diff")

    def changed(absent, **options):
        return jc.conditional_scores(objective, jc.exact, absent, width=4, **options)

    found, parts = in_parts(stops, 3, lambda: changed(["a0.h0"], checkpoint=tmp_path))
    np.testing.assert_array_equal(found.values, changed(["a0.h0"]).values)
    assert parts > 5
    with pytest.raises(ValueError, match="kept edges was"):
        changed(["a0.h1"], checkpoint=tmp_path)


def untimed(record):
    """A record without what the clock said."""
    if isinstance(record, dict):
        return {key: untimed(value) for key, value in record.items() if "seconds" not in key}
    return [untimed(value) for value in record] if isinstance(record, list | tuple) else record


@pytest.mark.mission
def test_judgements_go_on_to_the_same_bits(tmp_path, stops):
    model, pairs = micro_model("gpt2"), micro_pairs(batch=8)
    objective = jc.Objective(model, pairs, "logit_diff")
    circuit = jc.Circuit.of(jc.acdc(objective, 0.05, width=4))
    reset = jc.Objective(jc.reset_network(model, jax.random.key(0)), pairs, "logit_diff")

    def evaluated(checkpoint=None):
        kept = {} if checkpoint is None else {"checkpoint": checkpoint / "reset"}
        options = {"reset": reset, "method": lambda o: jc.acdc(o, 0.05, width=4, **kept), "random": 40, "seed": 1}
        return jc.evaluate(objective, circuit, **options, checkpoint=checkpoint)

    def tested(checkpoint=None):
        return jc.hypothesis_tests(objective, circuit, random=40, permutations=20, checkpoint=checkpoint)

    for name, judge, every in (("evaluation", evaluated, 4), ("tests", tested, 2)):
        whole = judge()
        found, parts = in_parts(stops, every, lambda judge=judge, name=name: judge(tmp_path / name))
        assert untimed(found.to_json()) == untimed(whole.to_json()) and parts > 0
    with pytest.raises(ValueError, match="method was"):
        tested(tmp_path / "evaluation")
    with pytest.raises(ValueError, match="circuit was"):
        other = jc.Circuit.select(jc.random_scores(objective), edges=20)
        jc.hypothesis_tests(objective, other, random=40, checkpoint=tmp_path / "tests")


def jitted(ids):
    ids = np.array(ids)
    return jax.jit(lambda logits, labels: -jax.nn.log_softmax(logits)[ids].sum())


def sloped(by):
    @jax.custom_jvp
    def most(x):
        return x.max()

    most.defjvp(lambda x, t: (x[0].max(), by * t[0].mean()))
    return lambda logits, labels: most(logits)


class Bent(jc.GPT2):
    bend: Any = eqx.field(static=True, default=None)

    def unembed(self, x, columns=None):
        return self.bend(super().unembed(x, columns))


def bent(bend):
    model = micro_model("gpt2")
    return Bent(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)}, bend=bend)


def objectives(of):
    """Two whose answers differ, and which of the identity's entries says so."""
    model, pairs = micro_model("gpt2"), micro_pairs()
    swapped = dataclasses.replace(pairs, clean=pairs.corrupt, corrupt=pairs.clean)
    if of == "restoring":
        return [jc.Objective(model, swapped), jc.Objective(model, pairs).restoring(pairs)], "restoring"
    if of == "code of the model":
        return [jc.Objective(bent(bend), pairs, "nll") for bend in (lambda x: x, lambda x: jnp.tanh(2 * x))], "model"
    metrics = {"constants": [jitted([0, 1]), jitted([5, 6])], "slope": [sloped(1.0), sloped(-1.0)]}[of]
    return [jc.Objective(model, pairs, metric) for metric in metrics], "metric"


@pytest.mark.parametrize("of", ["constants", "slope", "restoring", "code of the model"])
def test_an_answer_is_not_taken_for_that_of_another_function(of, tmp_path):
    """What a user's function holds or does inside, no name tells."""
    (first, second), name = objectives(of)
    before, now = (identity_of(objective) for objective in (first, second))
    assert differences(before, now).startswith(f"{name} was") and differences(before, identity_of(first)) == ""
    jc.acdc(first, 0.05, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=f"keeps another run: {name} was"):
        jc.acdc(second, 0.05, checkpoint=tmp_path)


def test_a_metric_without_a_slope_or_in_python_is_told(tmp_path):
    model, pairs = micro_model("gpt2"), micro_pairs()

    def looped(logits, labels):
        return jax.lax.while_loop(lambda x: x < 3, lambda x: x + 1, logits[0])

    def called(logits, labels):
        return jax.pure_callback(
            lambda x: x.max(), jax.ShapeDtypeStruct((), logits.dtype), logits, vmap_method="sequential"
        )

    assert identity_of(jc.Objective(model, pairs, looped))["metric"].startswith("looped-")
    with pytest.raises(ValueError, match="checkpoint: expected a metric and a model in JAX alone, got a pure_callback"):
        identity_of(jc.Objective(model, pairs, called))


def test_a_judgement_is_not_taken_for_that_of_another_control(tmp_path):
    model, pairs = micro_model("gpt2"), micro_pairs(batch=8)
    objective = jc.Objective(model, pairs, "logit_diff")
    circuit = jc.Circuit.select(jc.random_scores(objective), edges=20)
    network = jc.reset_network(model, 0)

    def evaluated(reset, **options):
        method = lambda o: jc.random_scores(o, seed=3)  # noqa: E731
        return jc.evaluate(objective, circuit, random=2, reset=reset, method=method, checkpoint=tmp_path, **options)

    evaluated(jc.Objective(network, pairs, "logit_diff"))
    with pytest.raises(ValueError, match="reset.data was .*; reset.metric was"):
        evaluated(jc.Objective(network, micro_pairs(9, batch=8), "nll"))
    with pytest.raises(ValueError, match="rediscovered was false, now true"):
        evaluated(jc.Objective(network, pairs, "logit_diff"), rediscovered=jc.eap)


@pytest.mark.mission
def test_variation_goes_on_to_the_same_bits(tmp_path, stops):
    """After signals; every run that is kept is not run again. Another method is refused by what it found or says."""
    objective = jc.Objective(micro_model("gpt2"), micro_pairs(batch=8), "logit_diff")
    seen = []

    def method(objective, threshold=0.05, seed=0):
        seen.append(seed)
        return jc.acdc(objective, threshold, width=4, head_order="random", seed=seed)

    def varied(method=method, seeds=2, **options):
        groups = np.arange(8) % 2
        counts = {"bootstrap": 3, "corruptions": 2, "seeds": seeds}
        return jc.variation(objective, method, groups=groups, **counts, **options)

    whole = varied()
    for names in (np.array(["a", "b"] * 4, dtype=object), np.arange(8, dtype=np.int8) % 2 + 3):
        kept = {"checkpoint": tmp_path / "names", "bootstrap": 0, "corruptions": 0}
        jc.variation(objective, jc.eap, groups=names, **kept)
    found, parts = in_parts(stops, 4, lambda: varied(checkpoint=tmp_path / "run"))
    assert untimed(found.to_json()) == untimed(whole.to_json()) and parts > 1
    seen.clear()
    assert untimed(varied(checkpoint=tmp_path / "run").to_json()) == untimed(whole.to_json()) and seen == [0]
    with pytest.raises(ValueError, match="method.threshold was 0.05, now 0.06"):
        varied(lambda o, seed=0: method(o, 0.06, seed), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="runs.seeds was 2, now 3"):
        varied(seeds=3, checkpoint=tmp_path / "run")


@pytest.mark.mission
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_command_goes_on(number, run, tmp_path):
    """A signal in the middle of a search, then the command again; then once more, which finds everything done."""
    pairs, model = tmp_path / "micro.npz", tmp_path / "micro"
    jc.save(micro_model("gpt2"), model)
    micro_pairs().save(pairs)
    folder, out = tmp_path / "run", tmp_path / "circuit.json"
    command = ["discover", pairs, "--model", model, "--threshold", "0.001", "--batch", "1", "--out", out]
    assert run(*command)[0] == 0
    whole = jc.Circuit.load(out)
    out.unlink()
    command += ["--checkpoint", folder]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxcircuits_program", *map(str, command)], stderr=subprocess.PIPE
    )
    while process.poll() is None and not (folder / "searches.state").exists():
        time.sleep(0.005)
    process.send_signal(number)
    error = process.communicate(timeout=120)[1].decode()
    word, code = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}[number]
    said = f"error: {word}; what is done is kept in {folder}, and the same command goes on from there\n"
    assert (process.returncode, error) == (code, said) and not out.exists()
    for _ in range(2):
        code, _, error = run(*command)
        assert (code, error) == (0, "")
        found = jc.Circuit.load(out)
        assert found.run["decisions"] == whole.run["decisions"] and (found.mask == whole.mask).all()
        assert found.run["metric_final"] == whole.run["metric_final"]
    code, _, error = run(*[part if part != "0.001" else "0.002" for part in command])
    assert code == 1 and "thresholds was [0.001], now [0.002]" in error and error.count("\n") == 1


@pytest.mark.mission
def test_every_command_that_can_take_long_takes_a_folder(run, tmp_path):
    jc.save(micro_model("gpt2"), tmp_path / "micro")
    micro_pairs(batch=8).save(tmp_path / "micro.npz")
    task = [tmp_path / "micro.npz", "--model", tmp_path / "micro"]
    circuit = tmp_path / "c.json"
    commands = {
        "sweep": ["sweep", *task, "--thresholds", "0.1,0.01", "--batch", "4"],
        "exact": ["score", *task, "--method", "exact"],
        "change": ["score", *task, "--method", "exact", "--without", "a0.h0", "--change"],
        "replicates": ["score", *task, "--method", "eap", "--replicates", "5"],
        "learnt": ["score", *task, "--method", "ugs", "--metric", "nll", "--steps", "3"],
        "discover": ["discover", *task, "--metric", "nll", "--threshold", "0.05", "--batch", "4", "--out", circuit],
        "evaluate": ["evaluate", circuit, "--random", "20"],
        "test": ["test", circuit, "--random", "20"],
        "vary": ["vary", *task, "--threshold", "0.05", "--bootstrap", "3", "--corruptions", "2"],
    }
    for name, command in commands.items():
        first, second = (run(*command, "--checkpoint", tmp_path / name) for _ in range(2))
        assert first[0] == second[0] == 0 and [*(tmp_path / name).rglob("run.state")], (first, second)
        assert [line for line in first[1].splitlines() if " s" not in line] == [
            line for line in second[1].splitlines() if " s" not in line
        ]
    code, _, error = run("score", *task, "--method", "eap", "--checkpoint", tmp_path / "eap")
    assert code == 1 and "eap has nothing to keep" in error and not (tmp_path / "eap").exists()
