"""BOS and chat turns around prompts, and the tasks on tokenizers of other families."""

import json

import numpy as np
import pytest
from conftest import gpt2_tokenizer, letters_tokenizer, micro_pairs

import jaxcircuits as jc
from jaxcircuits.cli.judge import JudgedOptions, _Asked
from jaxcircuits.data import from_text
from jaxcircuits.gguf_tokenizer import SPACE, read_tokenizer
from jaxcircuits.tasks import words
from jaxcircuits.texts import encode_one

CHAT = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"


def with_bos():
    """GPT-2's tokenizer, which begins every text with BOS."""
    import tokenizers

    tokenizer = gpt2_tokenizer()
    end = tokenizer.bos_token
    template = tokenizers.processors.TemplateProcessing(single=[end, "$A"], special_tokens=[(end, 50256)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def digit_by_digit():
    """GPT-2's tokens, with each digit cut out first."""
    import tokenizers

    tokenizer, cut = gpt2_tokenizer(), tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = cut.Sequence([cut.Digits(individual_digits=True), cut.ByteLevel(False)])
    return tokenizer


def sentencepiece(prefix=True):
    """A small SentencePiece tokenizer that knows the tasks' words, as Llama 2 puts a space in front of a text."""
    whole = [f"{SPACE}{word}" for name in ("NAMES", "PLACES", "OBJECTS") for word in getattr(words, name)]
    own = dict.fromkeys([*whole, *(f"{SPACE}{word}" for word in "Then and went to the gave a".split())])
    starts = dict.fromkeys(word[:end] for word in own for end in range(1, len(word) + 1))
    letters = dict.fromkeys("".join(own) + ".,0123456789")
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = list(dict.fromkeys([*sorted(starts, key=len), *letters]))
    metadata = {
        "model": "llama", "tokens": ["<s>", "<unk>", *raw, *pieces],
        "token_type": [3, 2] + [6] * 256 + [1] * len(pieces),
        "bos_token_id": 0, "unknown_token_id": 1, "add_space_prefix": prefix,
    }  # fmt: skip
    return read_tokenizer({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


ROWS = [
    {"clean": "Mary met", "corrupt": "Paul met", "answer": " John", "wrong": " Anna"},
    {"clean": "Then Mary met", "corrupt": "Then Paul met", "answer": " Tom", "wrong": " Kate"},
]


# --- BOS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, bos, begins", [
    (gpt2_tokenizer, None, False), (with_bos, None, True), (gpt2_tokenizer, True, True), (with_bos, False, False),
])  # fmt: skip
def test_prompts_begin_with_bos_as_the_tokenizer_or_the_caller_says(make, bos, begins, tmp_path):
    tokenizer = make()
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    bare = from_text(ROWS, tokenizer)
    read = jc.PromptPairs.load(tmp_path / "task.jsonl", tokenizer, bos=bos)
    made = jc.tasks.TASKS["ioi"].generate(tokenizer, bos=bos, size=3)
    assert (made.clean[:, 0] == 50256).all() == begins and (50256 in made.clean) == begins
    start = int(begins)
    np.testing.assert_array_equal(read.clean[:, start:], bare.clean)
    np.testing.assert_array_equal(read.corrupt[:, :start], np.full((2, start), 50256))
    np.testing.assert_array_equal(read.length, bare.length + start)


def test_what_begins_with_bos_gets_no_second_one():
    tokenizer = with_bos()
    once = jc.tasks.TASKS["docstring"].generate(tokenizer, size=3)
    assert (once.clean[:, 0] == 50256).all() and (once.clean[:, 1] != 50256).all()
    np.testing.assert_array_equal(jc.framed(once, tokenizer, bos=True).clean, once.clean)
    bare = jc.tasks.TASKS["docstring"].generate(tokenizer, size=3, bos=False)
    np.testing.assert_array_equal(bare.clean, once.clean[:, 1:])


def test_bos_is_what_a_text_begins_with_where_the_tokenizer_does_not_name_it():
    tokenizer = with_bos()
    named = jc.tasks.TASKS["ioi"].generate(tokenizer, size=3)
    tokenizer.bos_token = None
    assert tokenizer.bos_token_id is None and (named.clean[:, 0] == 50256).all()
    np.testing.assert_array_equal(jc.tasks.TASKS["ioi"].generate(tokenizer, size=3).clean, named.clean)
    bare = jc.tasks.TASKS["ioi"].generate(tokenizer, size=3, bos=False)
    np.testing.assert_array_equal(bare.clean, named.clean[:, 1:])
    docstrings = jc.tasks.TASKS["docstring"].generate(tokenizer, size=3)  # which begin with BOS
    assert (docstrings.clean[:, 0] == 50256).all() and (docstrings.clean[:, 1] != 50256).all()


def test_a_tokenizer_without_bos_is_asked_for_no_word_that_it_may_not_know():
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"b": 0, "c": 1}))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(Exception, match="UNK"):
        tokenizer.encode("a")
    pairs = jc.PromptPairs(clean=[[0, 1]], corrupt=[[1, 1]], answer=[0], wrong=[1])
    np.testing.assert_array_equal(jc.framed(pairs, tokenizer).clean, pairs.clean)


def test_where_some_prompts_begin_with_bos_the_others_get_it():
    tokenizer, end = gpt2_tokenizer(), "<|endoftext|>"
    rows = [dict(row, name="Mary") for row in ROWS]
    rows[1] = rows[1] | {name: end + rows[1][name] for name in ("clean", "corrupt")}
    bare = from_text(rows, tokenizer)
    pairs = jc.framed(bare, tokenizer, bos=True)
    assert ((pairs.clean == 50256).sum(1) == 1).all() and (pairs.clean[:, 0] == 50256).all()
    np.testing.assert_array_equal(pairs.corrupt[0, :4], [50256, *bare.corrupt[0, :3]])
    np.testing.assert_array_equal(pairs.clean[1], bare.clean[1])
    np.testing.assert_array_equal(pairs.length, bare.length + [1, 0])
    np.testing.assert_array_equal(pairs.spans["name"], bare.spans["name"] + [[1], [0]])
    only_clean = dict(ROWS[0], clean=end + " Mary met", corrupt=" Then Paul met")
    with pytest.raises(ValueError, match="bos: of prompt 0 only the clean version begins with BOS: expected both or"):
        jc.framed(from_text([only_clean], tokenizer), tokenizer, bos=True)


@pytest.mark.parametrize("kind", ["positions", "lengths"])
def test_labels_at_positions_move_along(kind):
    pairs = micro_pairs(kind=kind, vocab=50256)
    spread = np.arange(5 * 6 * 2).reshape(5, 6, 2)
    pairs = jc.PromptPairs(
        clean=pairs.clean, corrupt=pairs.corrupt, answer=spread, length=pairs.length, positions=pairs.positions
    )
    moved = jc.framed(pairs, gpt2_tokenizer(), bos=True)
    for row in range(5):
        scored = pairs.scored()[0][row][pairs.scored()[1][row]]
        shifted = moved.scored()[0][row][moved.scored()[1][row]]
        np.testing.assert_array_equal(shifted, scored + 1)
        np.testing.assert_array_equal(moved.clean[row, shifted], pairs.clean[row, scored])
        np.testing.assert_array_equal(moved.answer[row, shifted], pairs.answer[row, scored])


def test_bos_is_refused_where_there_is_none(tmp_path):
    pairs = micro_pairs()
    with pytest.raises(ValueError, match="bos: the model's tokenizer has no BOS token"):
        jc.framed(pairs, letters_tokenizer(), bos=True)
    pairs.save(tmp_path / "task.npz")
    with pytest.raises(ValueError, match="task.npz holds token ids: bos and template are for text"):
        jc.PromptPairs.load(tmp_path / "task.npz", bos=True)


# --- chat ------------------------------------------------------------------------------------------


def chat(template=CHAT):
    tokenizer = gpt2_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template, expected", [
    ("Go on.", "<|user|>\nGo on.<|endoftext|>\n<|assistant|>\n{}"),
    ("Go on:\n{prompt}", "<|user|>\nGo on:\n{}<|endoftext|>\n<|assistant|>\n"),
    ("Go on: {prompt}", "<|user|>\nGo on: {}<|endoftext|>\n<|assistant|>\n"),
])  # fmt: skip
def test_the_answer_is_read_at_the_end_of_the_chat(template, expected):
    tokenizer = chat()
    pairs = jc.framed(from_text(ROWS, tokenizer), tokenizer, template=template)
    for row, ids, corrupt, length in zip(ROWS, pairs.clean, pairs.corrupt, pairs.length, strict=True):
        assert ids[:length].tolist() == tokenizer.encode(expected.format(row["clean"]))
        assert corrupt[:length].tolist() == tokenizer.encode(expected.format(row["corrupt"]))
    assert pairs.scored()[0][:, 0].tolist() == (pairs.length - 1).tolist()
    space = "" if "{prompt}" in template else " "  # the assistant's turn, which the answer begins or goes on with
    assert [tokenizer.decode(one) for one in pairs.answer] == [f"{space}John", f"{space}Tom"]
    assert [tokenizer.decode(one) for one in pairs.wrong] == [f"{space}Anna", f"{space}Kate"]


def test_an_answer_begins_the_turn_as_the_chat_template_has_it():
    tokenizer, rows = gpt2_tokenizer(), [dict(ROWS[0], wrong=[" Anna", " him"])]
    for space in ("", " "):
        tokenizer.chat_template = (
            f"{{% for m in messages %}}{{{{ '<user>' if m.role == 'user' else '<bot>{space}' }}}}{{{{ m.content }}}}"
            "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
        )
        pairs = jc.framed(from_text(rows, tokenizer), tokenizer, template="{prompt}\n")
        assert [tokenizer.decode(one) for one in pairs.answer] == [f"{space}John"]
        assert [tokenizer.decode([one]) for one in pairs.wrong[0]] == [f"{space}Anna", f"{space}him"]


def test_answers_that_are_not_one_token_without_their_space_are_said():
    tokenizer = chat()
    bare = from_text([dict(ROWS[0], wrong=" Clara")], tokenizer)
    with pytest.warns(UserWarning, match="1 of the answers, such as 'Clara', are not one token without theirs"):
        pairs = jc.framed(bare, tokenizer, template="{prompt}")
    np.testing.assert_array_equal(pairs.answer, bare.answer)
    np.testing.assert_array_equal(pairs.wrong, bare.wrong)


def test_every_task_of_text_can_stand_in_a_chat():
    tokenizer = chat("{{ bos_token }}" + CHAT)
    for name in ("ioi", "greater_than", "gendered_pronoun", "induction"):
        task = jc.tasks.TASKS[name]
        bare, framed = (task.generate(tokenizer, size=4, template=template) for template in (None, "Go on."))
        width = bare.clean.shape[1]
        np.testing.assert_array_equal(framed.clean[:, -width:], bare.clean)
        assert (framed.clean[:, 0] == 50256).all() and (framed.clean[:, 1] != 50256).all()
        without = task.generate(tokenizer, size=4, template="Go on.", bos=False)
        np.testing.assert_array_equal(without.clean, framed.clean[:, 1:])


@pytest.mark.parametrize("chat_template, template, message", [
    (None, "Go on.", "has no chat template"),
    ("{{ raise_exception('no system') }}", "{prompt}", "cannot be filled in: no system"),
    ("{{ messages }}{{ messages }}", "{prompt}", "has the prompt 2 times, expected one"),
    (CHAT, "Go on:{prompt}s", r"the clean prompt 0, 'Mary met', is cut into other tokens .* put a line break before"),
])  # fmt: skip
def test_a_chat_that_cannot_be_is_refused(chat_template, template, message):
    tokenizer = chat(chat_template)
    with pytest.raises(ValueError, match=f"template: .*{message}"):
        jc.framed(from_text(ROWS, tokenizer), tokenizer, template=template)


def test_a_prompt_with_bos_is_not_put_into_a_turn():
    tokenizer = chat("{{ bos_token }}" + CHAT)
    with_own = jc.framed(from_text(ROWS, tokenizer), tokenizer, bos=True)
    only_clean = dict(ROWS[0], clean="<|endoftext|> Mary met", corrupt=" Then Paul met")
    for prompts in (with_own, from_text([only_clean], tokenizer)):
        for template in ("{prompt}", "Go on."):
            with pytest.raises(ValueError, match="template: expected prompts without BOS, .* leave it out of them"):
                jc.framed(prompts, tokenizer, template=template)


LLAMA_2 = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
LLAMA_2 += "{% else %} {{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("template, expected", [
    ("Went to:\n{prompt}", None),
    ("{prompt}", "<s>[INST] {} [/INST]"),
    ("Went to {prompt}.", "<s>[INST] Went to {}. [/INST]"),
    ("Went to", "<s>[INST] Went to [/INST] {}"),
])  # fmt: skip
def test_a_tokenizer_that_begins_with_a_space_reads_a_chat_as_one_text(template, expected):
    tokenizer = sentencepiece()
    tokenizer.chat_template = LLAMA_2
    rows = [{"clean": f"{word} {name}", "corrupt": f"{word} Paul", "who": name} for word, name in
            [("Mary and", "John"), ("Then Mary went to", "Tom")]]  # fmt: skip
    bare = from_text(rows, tokenizer)
    if expected is None:  # "Mary" is four tokens without a space
        with pytest.raises(ValueError, match="a space where the tokenizer begins every text with one"):
            jc.framed(bare, tokenizer, template=template)
        return
    pairs = jc.framed(bare, tokenizer, template=template)
    for row, clean, corrupt, length, who in zip(
        rows, pairs.clean, pairs.corrupt, pairs.length, pairs.spans["who"], strict=True
    ):
        for name, ids in (("clean", clean), ("corrupt", corrupt)):
            assert ids[:length].tolist() == tokenizer.encode(expected.format(row[name]), add_special_tokens=False)
        assert tokenizer.decode(clean[slice(*who)]).strip() == row["who"]


def test_a_first_token_without_its_space_is_the_one_in_the_chat():
    import tokenizers
    import transformers

    pieces = ["<s>", "<unk>", "\n", *(f"{SPACE}{word}" for word in "Mary Paul met".split()), "Mary", "Paul", "."]
    built = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], 1))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(SPACE, prepend_scheme="first")
    built.decoder = tokenizers.decoders.Metaspace(SPACE, prepend_scheme="first")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>", bos_token="<s>")
    tokenizer.chat_template = "{{ bos_token }}\n{{ messages[0].content }}\n."
    bare = from_text([{"clean": "Mary met", "corrupt": "Paul met"}], tokenizer)
    pairs = jc.framed(bare, tokenizer, template="{prompt}")
    assert tokenizer.convert_ids_to_tokens(bare.clean[0]) == [f"{SPACE}Mary", f"{SPACE}met"]
    for ids, name in ((pairs.clean, "Mary"), (pairs.corrupt, "Paul")):
        assert tokenizer.convert_ids_to_tokens(ids[0]) == ["<s>", "\n", name, f"{SPACE}met", "\n", "."]


# --- other tokenizers ------------------------------------------------------------------------------


def test_years_in_digits_are_later_exactly_if_their_next_digit_is():
    tokenizer = digit_by_digit()
    pairs = jc.tasks.TASKS["greater_than"].generate(tokenizer, size=40)
    assert [tokenizer.decode([one]) for one in pairs.digits] == list("0123456789")
    for clean, corrupt, year, answer, wrong in zip(
        pairs.clean, pairs.corrupt, pairs.year, pairs.answer, pairs.wrong, strict=True
    ):
        text = tokenizer.decode(clean)
        start, century = int(text.split(" year ")[1][:4]), int(text[-2:])
        later, earlier = (tokenizer.decode(ids[ids >= 0]) for ids in (answer, wrong))
        assert {century * 100 + 10 * int(digit) + unit > start for digit in later for unit in range(10)} == {True}
        assert {century * 100 + 10 * int(digit) + unit > start for digit in earlier for unit in range(10)} == {False}
        assert sorted(later + earlier) == list("0123456789") and year == start // 10 % 10
        assert tokenizer.decode(corrupt) == text.replace(str(start), f"{century}01")


def years_tokenizer(pattern, numbers):
    """One token a word and a space; numbers are cut by the pattern."""
    import tokenizers
    import transformers

    words = "The war lasted from the year to".split()
    vocab = dict.fromkeys(["[UNK]", *words, *(f" {word}" for word in words), " ", *numbers])
    model = tokenizers.models.WordLevel({text: number for number, text in enumerate(vocab)}, unk_token="[UNK]")
    built = tokenizers.Tokenizer(model)
    cut = tokenizers.Regex(rf" ?\p{{L}}+|{pattern}|\s")
    built.pre_tokenizer = tokenizers.pre_tokenizers.Split(cut, behavior="isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]")


THREES = [f"{number:0{width}d}" for width in (1, 2, 3) for number in range(10**width)]


def test_years_of_three_digits_and_one_are_later_within_their_decade():
    tokenizer = years_tokenizer(r"\p{N}{1,3}", THREES)  # as Llama 3 and OLMo 2
    pairs = jc.tasks.TASKS["greater_than"].generate(tokenizer, size=40)
    assert jc.tasks.TASKS["greater_than"].left_out(tokenizer).keys() == {"events"}
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in (*pairs.clean, *pairs.corrupt)]
    for clean, corrupt, year, answer, wrong in zip(
        tokens[:40], tokens[40:], pairs.year, pairs.answer, pairs.wrong, strict=True
    ):
        assert clean[-5:-3] == [clean[-1], f"{year}"] and clean[-3:-1] == [" to", " "] and 110 <= int(clean[-1]) < 180
        assert tokenizer.encode("".join(clean)) == tokenizer.convert_tokens_to_ids(clean)
        assert corrupt == [*clean[:-4], "0", *clean[-3:]]
        assert tokenizer.convert_ids_to_tokens(answer[answer >= 0]) == list("0123456789")[year + 1 :]
        assert tokenizer.convert_ids_to_tokens(wrong[wrong >= 0]) == list("0123456789")[: year + 1]


def test_years_that_split_otherwise_are_refused_by_their_pieces():
    tokenizer = years_tokenizer(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", THREES)  # threes from the right
    with pytest.raises(ValueError, match=r"the model's makes \[' ', '1', '732'\] of it"):
        jc.tasks.TASKS["greater_than"].generate(tokenizer)


def test_a_tokenizer_that_begins_with_a_space_is_asked_for_words_after_others():
    tokenizer = sentencepiece()
    assert tokenizer.tokenize(" Mary") == [SPACE, f"{SPACE}Mary"]
    assert encode_one(tokenizer, " Mary") == tokenizer.convert_tokens_to_ids(f"{SPACE}Mary")
    pairs = jc.tasks.TASKS["ioi"].generate(tokenizer, size=5)
    assert (pairs.clean[:, 0] == 0).all()
    for clean, answer, wrong in zip(pairs.clean, pairs.answer, pairs.wrong, strict=True):
        assert (clean == answer).sum() == 1 and (clean == wrong).sum() == 2


@pytest.mark.mission
def test_words_that_are_left_out_are_said(run, monkeypatch):
    task = jc.tasks.TASKS["ioi"]
    assert task.left_out(gpt2_tokenizer()) == {}
    left_out = task.left_out(letters_tokenizer(("Mary", "John", *words.PLACES)))
    assert left_out["names"] == tuple(name for name in words.NAMES if name not in ("Mary", "John"))
    assert left_out["objects"] == tuple(words.OBJECTS) and "places" not in left_out
    code, printed, _ = run("tasks", "check", "docstring", "--no-bos", "--size", 4)
    assert code == 0 and "\n35 tokens" in printed
    assert "78 of 112 arguments are not one token and are left out: file, width" in printed
    monkeypatch.setattr(type(task), "left_out", lambda *_: {"years": ("1102", "1107")})
    code, printed, _ = run("tasks", "check", "greater_than", "--size", 4)
    assert code == 0 and "2 years do not split as the task needs and are left out: 1102, 1107" in printed


@pytest.mark.mission
def test_bos_and_what_is_left_out_are_in_the_record_and_used_again(run, tmp_path):
    file = tmp_path / "scores.json"
    code, _, err = run("score", "docstring", "--method", "eap", "--size", 4, "--no-bos", "--out", file)
    assert code == 0, err
    record = json.loads(file.read_text())["run"]
    assert record["bos"] is False and record["words_left_out"] == {"arguments": 78, "nouns": 14}
    options = _Asked(jc.Circuit.load(file), JudgedOptions()).options
    assert options.bos is False and options.template is None
    code, printed, _ = run("tasks", "ioi", "--show", 1, "--bos")
    assert code == 0 and "ioi 0: 16 tokens" in printed and "'<|endoftext|>" in printed
    code, _, err = run("tasks", "ioi", "--template", "Go on.")
    assert code == 1 and "error: template: the model's tokenizer has no chat template" in err
