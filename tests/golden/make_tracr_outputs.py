"""Makes tests/golden/tracr: what the compiled haiku models of the bundled programs give (needs the extra `compile`).

python tests/golden/make_tracr_outputs.py
"""

import importlib.util
import itertools
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np

folder = Path(__file__).parent / "tracr"
folder.mkdir(exist_ok=True)
source = Path(__file__).parents[2] / "weights" / "compile_tracr.py"
spec = importlib.util.spec_from_file_location("compile_tracr", source)
compile_tracr = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compile_tracr)

for name, (_, vocabulary, length) in compile_tracr.PROGRAMS.items():
    model, _ = compile_tracr.compiled(name)
    random = np.random.default_rng(0)
    arrays = {}
    for size in (length - 1, length):
        inputs = list(itertools.product(sorted(vocabulary, key=str), repeat=size))
        inputs = [inputs[row] for row in random.choice(len(inputs), 8, replace=False)]
        tokens = [model.input_encoder.encode([compile_tracr.BOS, *words]) for words in inputs]
        output = model.forward(model.params, jnp.array(tokens))
        arrays[f"tokens_{size}"] = np.array(tokens, np.int32)
        arrays[f"residual_{size}"] = np.asarray(output.transformer_output.output)
        arrays[f"decoded_{size}"] = np.asarray(output.unembedded_output)
    np.savez_compressed(folder / f"{name}.npz", **arrays)
print(", ".join(f"{package} {version(package)}" for package in ("tracr-pypi", "jax", "dm-haiku")))
