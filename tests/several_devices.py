"""What `test_devices.py` runs in a process of its own: the library on a mesh; prints JSON.

python tests/several_devices.py DEVICES            virtual CPU devices
python tests/several_devices.py DEVICES methods    every scoring method on one and on all of them
python tests/several_devices.py DEVICES spans      a model divided at spans of the prompts
python tests/several_devices.py DEVICES weights    weights split between two devices each
python tests/several_devices.py ADDRESS INDEX SECONDS    one of two processes with 2 devices each, for which the other
                                                         is dead after so many seconds without a sign
"""

import dataclasses
import json
import os
import re
import sys

distributed = ":" in sys.argv[1]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={2 if distributed else sys.argv[1]}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)
if distributed:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        sys.argv[1], num_processes=2, process_id=int(sys.argv[2]), heartbeat_timeout_seconds=int(sys.argv[3])
    )

import numpy as np  # noqa: E402
from conftest import micro_model, micro_pairs, random_mask  # noqa: E402

import jaxcircuits as jc  # noqa: E402
from jaxcircuits import batching, chains, device_loop  # noqa: E402
from jaxcircuits.discovery.methods import METHODS  # noqa: E402


def collectives(objective):
    """Sizes in bytes of what the devices exchange inside one compiled chain, its commit, and a loop of both."""
    seen = {"chain": set(), "loop": set(), "commit": set()}
    compiled, commit = batching.memory_needed, chains.commit

    def note(name, jitted, inputs):
        text = jitted.lower(*inputs).compile().as_text()
        for shape in re.findall(r"= \w(\d+)\[([\d,]*)\]\S* (?:all-|collective-|reduce-scatter)", text):
            seen[name].add(int(shape[0]) // 8 * int(np.prod([int(n) for n in shape[1].split(",") if n])))

    def spy(jitted, *inputs):
        for name, program in (("chain", chains.run_chain), ("loop", device_loop.run_loop)):
            if jitted is program:
                note(name, jitted, inputs)
        return compiled(jitted, *inputs)

    def spied_commit(*inputs):
        if not seen["commit"]:
            note("commit", commit, inputs)
        return commit(*inputs)

    batching.memory_needed, chains.commit = spy, spied_commit
    for evaluator in (jc.LiveEvaluator, jc.DeviceEvaluator):
        jc.acdc(objective, 0.05, width=4, evaluator=evaluator)
    batching.memory_needed, chains.commit = compiled, commit
    return {name: sorted(sizes) for name, sizes in seen.items()}


def split_weights(model, mesh):
    """The model as it is placed on devices too small to hold it."""
    limit, batching.memory_limit = batching.memory_limit, lambda: 1000
    split = place_weights(model, mesh)
    batching.memory_limit = limit
    return split


place_weights = batching.place_weights


def answers(objective, masks):
    """Every public value of an objective, and a search with it."""
    results = jc.acdc_sweep(objective, [0.05, 0.2], width=None if distributed else 4)
    sampled = jc.replicates(objective, 0.05, count=3, width=4)
    together = jc.replicates(objective, 0.05, count=3, width=4, together=4)
    device = jc.acdc(objective, 0.05, width=4, evaluator=jc.DeviceEvaluator)
    return {
        "device": [[d.name, d.removed] for d in device.decisions],
        "device_metrics": [d.after for d in device.decisions],
        "replicates": np.argwhere(sampled.masks).tolist(),
        "together": np.argwhere(together.masks).tolist(),
        "shape": objective.describe()["mesh"],
        "many": np.asarray(objective.many(masks, width=3)).tolist(),
        "per_example": np.asarray(objective.per_example(masks[0])).tolist(),
        "gradient": np.asarray(objective.gradient(masks[0])).tolist(),
        "decisions": [[d.name, d.removed] for result in results for d in result.decisions],
        "metrics": [d.after for result in results for d in result.decisions],
    }


def scores(objective):
    """Every method's scores."""
    runs = {}
    for name, method in METHODS.items():
        steps = {"steps": 3} if "batch" in method.defaults else {}
        runs[name] = np.asarray(method.run(objective, **steps).scores).tolist()
    return runs


def main():
    model = micro_model("gpt2", dtype="float64")
    pairs = micro_pairs(batch=4)
    masks = np.stack([random_mask(model.graph, seed) for seed in range(5)])
    mesh = jc.device_mesh(4)
    if "methods" in sys.argv:
        report = {"all": scores(jc.Objective(model, pairs, "logit_diff", mesh=mesh))}
        report["one"] = scores(jc.Objective(model, pairs, "logit_diff"))
        print("REPORT" + json.dumps(report), flush=True)
        return
    if "weights" in sys.argv:
        meshes = {"all": jc.device_mesh(4, model=2), "one": None}
        report = {name: answers(jc.Objective(model, pairs, "kl", mesh=m), masks) for name, m in meshes.items()}
        config = jc.GPT2Config(vocab_size=11, n_positions=8, n_embd=64, n_layer=2, n_head=1)
        wide = jc.Objective(jc.GPT2.random(config, jax.random.key(0)), pairs, "kl", mesh=meshes["all"])
        matrices = [leaf for leaf in jax.tree.leaves(wide.model) if leaf.size >= 64 * 64]
        report["split"] = [leaf.addressable_shards[0].data.size / leaf.size for leaf in matrices]
        report["collectives"] = collectives(wide)
        print("REPORT" + json.dumps(report), flush=True)
        return
    if "spans" in sys.argv:
        model = jc.with_units(model, "layers", ["subject"])
        pairs = dataclasses.replace(pairs, spans={"subject": [[0, 1], [1, 3], [2, 5], [4, 6]]})
        masks = np.stack([random_mask(model.graph, seed) for seed in range(5)])
        meshes = {"all": mesh, "one": None}
        report = {
            name: answers(jc.Objective(model, pairs, "logit_diff", "mean", mesh=m), masks) for name, m in meshes.items()
        }
        print("REPORT" + json.dumps(report), flush=True)
        return
    objective = jc.Objective(model, pairs, "logit_diff", mesh=mesh)
    print("BEGUN", float(objective(masks[0])), flush=True)
    report = {"all": answers(objective, masks)}
    if not distributed:
        plain = jc.Objective(model, pairs, "logit_diff", "mean")
        report["one"] = answers(jc.Objective(model, pairs, "logit_diff"), masks)
        report["collectives"] = collectives(jc.Objective(model, pairs, "logit_diff", mesh=mesh))
        batching.place_weights = split_weights
        split = jc.Objective(model, pairs, "logit_diff", "mean", mesh=jc.device_mesh(4, devices=2))
        arrays = [leaf for leaf in jax.tree.leaves(split.model) if leaf.size > 64]
        report["split"] = [sum(not leaf.sharding.is_fully_replicated for leaf in arrays), float(split(masks[0]))]
        report["plain"] = float(plain(masks[0]))
    print("REPORT" + json.dumps(report), flush=True)


main()
