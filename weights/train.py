"""Trains the bundled model from a seed: a 4-layer GPT-2 that does IOI, Greater-Than, induction and docstrings.

    python weights/train.py --out FOLDER        # under an hour on 2 cores
    python weights/train.py --evaluate FOLDER   # held-out behaviour, as in weights/README.md

Every row is a prompt and its answer; all tokens are predicted, answers count 10 times as much as other tokens.
"""

import argparse
import json
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
import transformers

from jaxcircuits import checkpoints
from jaxcircuits.data import encode, pad
from jaxcircuits.models import GPT2, GPT2Config
from jaxcircuits.tasks import greater_than, induction, ioi
from jaxcircuits.tasks.words import EVENTS, NAMES, OBJECTS, PLACES

ARGUMENTS = (
    "load size files last port node count shape index value path name mode flag text data item line color speed "
    "level group table event state order limit range source target"
).split()
FUNCTIONS = "run make read write open close find send build check parse update merge split filter sort".split()
PROSE = (
    "oil column piece population crime unit dark river stone glass cloud paper metal winter summer island window "
    "doctor bridge forest silver motor engine signal circle square number letter story music"
).split()
GLUE = (
    "Then When After While Yesterday , . and went to the gave a arrived at were handed had long day offered met "
    'The lasted from year def self ( ) : ): """ param in of'
).split()

HELD_OUT_SEED = 10_000
IOI = {"templates": 6, "order": "mixed", "repeats": True}  # the templates whose words the tokenizer knows
WIDTH = 48


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a word; years are split into two digits and two digits, as GPT-2 does with most."""
    words = ["<|endoftext|>", *GLUE, *NAMES, *PLACES, *OBJECTS, *EVENTS, *FUNCTIONS, *ARGUMENTS, *PROSE]
    words = list(dict.fromkeys([*words, *(f"{number:02d}" for number in range(100))]))
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>")
    tokenizer = tokenizers.Tokenizer(model)
    two_digits = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\d{2}"), "isolated")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Whitespace(), two_digits])
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def ioi_rows(tokenizer, seed, size):
    pairs = ioi.generate(tokenizer, seed=seed, size=size, **IOI)
    return [[*row[:length], answer] for row, length, (answer,) in zip(pairs.clean, pairs.length, pairs.answer)], 1


def greater_than_rows(tokenizer, seed, size):
    random = np.random.default_rng(seed)
    pairs = greater_than.generate(tokenizer, seed=seed, size=size, repeats=True)
    answers = [random.choice(row[row >= 0]) for row in pairs.answer]
    return [[*row, answer] for row, answer in zip(pairs.clean, answers)], 1


def induction_rows(tokenizer, seed, size):
    """Random words repeated at varying distances; every repeated word counts as an answer."""
    random = np.random.default_rng(seed)
    ids = np.array([encode(tokenizer, word)[0] for word in [*NAMES, *PLACES, *OBJECTS, *EVENTS, *ARGUMENTS, *PROSE]])
    rows = []
    for _ in range(size):
        first = random.choice(ids, random.integers(5, 17), replace=False)
        rows.append([*first, *first[: random.integers(3, len(first))]])
    return rows, 3


def docstring_rows(tokenizer, seed, size):
    """A def and a docstring that lists its arguments in order; the answer is the next argument."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(size):
        arguments = random.choice(ARGUMENTS, 5, replace=False)
        prose = random.choice(PROSE, 7, replace=False)
        text = f"def {random.choice(FUNCTIONS)}(self, {', '.join(arguments)}):"
        text += f' """{" ".join(prose[:3])} : param {arguments[1]} : {prose[3]} {prose[4]}'
        text += f" : param {arguments[2]} : {prose[5]} {prose[6]} : param {arguments[3]}"
        rows.append(encode(tokenizer, text.replace('"""', ' """ ')))
    return rows, 1


SOURCES = {ioi_rows: 40, greater_than_rows: 24, induction_rows: 40, docstring_rows: 24}


def make_pool(tokenizer, seed, rows_each):
    """For each source its rows [row, WIDTH] and the weights of their next-token predictions."""
    pool = []
    for source in SOURCES:
        rows, answers = source(tokenizer, seed, rows_each)
        lengths = np.array([len(row) for row in rows])
        tokens = np.zeros((len(rows), WIDTH), np.int32)
        padded = pad(rows, 0)
        tokens[:, : padded.shape[1]] = padded
        target = np.arange(1, WIDTH)
        weights = 0.1 * (target < lengths[:, None]) + 0.9 * (
            (target < lengths[:, None]) & (target >= lengths[:, None] - answers)
        )
        pool.append((tokens, weights.astype(np.float32)))
    return pool


def loss_of(model, tokens, weights):
    logits = jax.vmap(model)(tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.sum(losses * weights) / jnp.sum(weights)


def train(seed: int, steps: int, rows_each: int):
    tokenizer = make_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=128, n_layer=4, n_head=8)
    model = GPT2.random(config, jax.random.key(seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(200, steps // 10), steps, 2e-5)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.02))
    state = optimiser.init(eqx.filter(model, eqx.is_array))
    pool = make_pool(tokenizer, seed, rows_each)
    random = np.random.default_rng(seed)

    @eqx.filter_jit
    def step(model, state, tokens, weights):
        loss, gradient = eqx.filter_value_and_grad(loss_of)(model, tokens, weights)
        updates, state = optimiser.update(gradient, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, loss

    start = time.perf_counter()
    for number in range(steps):
        picks = [random.integers(rows_each, size=size) for size in SOURCES.values()]
        tokens = np.concatenate([rows[pick] for (rows, _), pick in zip(pool, picks)])
        weights = np.concatenate([weight[pick] for (_, weight), pick in zip(pool, picks)])
        model, state, loss = step(model, state, tokens, weights)
        if number % 250 == 0 or number == steps - 1:
            print(
                json.dumps(
                    {"step": number, "loss": round(float(loss), 4), "seconds": round(time.perf_counter() - start)}
                ),
                flush=True,
            )
            print(json.dumps(behaviour(model, tokenizer, size=200)), flush=True)
    return model, tokenizer


def behaviour(model, tokenizer, size: int = 1000) -> dict[str, float]:
    """Held-out behaviour: prompts from a seed that training never used."""

    @eqx.filter_jit
    def last_logits(model, pairs_clean, length):
        return jax.vmap(lambda tokens, end: model(tokens)[end - 1])(pairs_clean, length)

    def run(task, **options):
        pairs = task.generate(tokenizer, seed=HELD_OUT_SEED, size=size, **options)
        return pairs, np.asarray(last_logits(model, pairs.clean, pairs.length))

    def accuracy(pairs, logits):
        return float((logits.argmax(-1)[:, None] == pairs.answer).any(-1).mean())

    rows = np.arange(size)
    ioi_pairs, ioi_logits = run(ioi, repeats=True)
    mixed_pairs, mixed_logits = run(ioi, **IOI)
    later_pairs, later_logits = run(greater_than, repeats=True)
    probabilities = np.asarray(jax.nn.softmax(later_logits))[:, later_pairs.digits]
    later = np.arange(100) > later_pairs.year[:, None]
    induction_pairs, induction_logits = run(induction)
    documented = pad(docstring_rows(tokenizer, HELD_OUT_SEED, size)[0], 0)
    docstring_logits = np.asarray(last_logits(model, documented[:, :-1], np.full(size, documented.shape[1] - 1)))
    difference = ioi_logits[rows, ioi_pairs.answer[:, 0]] - ioi_logits[rows, ioi_pairs.wrong[:, 0]]
    return {
        "ioi_accuracy": accuracy(ioi_pairs, ioi_logits),
        "ioi_logit_difference": float(difference.mean()),
        "ioi_accuracy_all_templates": accuracy(mixed_pairs, mixed_logits),
        "greater_than_probability_difference": float(np.where(later, probabilities, -probabilities).sum(1).mean()),
        "induction_accuracy": accuracy(induction_pairs, induction_logits),
        "docstring_accuracy": float((docstring_logits.argmax(-1) == documented[:, -1]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder to write the trained model to")
    parser.add_argument("--evaluate", metavar="FOLDER", help="measure a trained model instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=20_000, help="rows made of each kind of text")
    arguments = parser.parse_args()
    if arguments.evaluate:
        loaded = checkpoints.load(arguments.evaluate)
        print(json.dumps(behaviour(loaded.model, loaded.tokenizer), indent=1))
    elif arguments.out:
        model, tokenizer = train(arguments.seed, arguments.steps, arguments.rows)
        checkpoints.save(model, arguments.out, tokenizer)
        print(json.dumps(behaviour(model, tokenizer), indent=1))
    else:
        parser.error("expected --out FOLDER or --evaluate FOLDER")


if __name__ == "__main__":
    main()
