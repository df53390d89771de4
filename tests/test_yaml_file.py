"""YAML: plain values as they stand; what grows, repeats or runs is refused."""

import pytest

from jaxcircuits.yaml_file import DEEPEST, LARGEST, read_yaml


def test_values_are_read_as_they_stand(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("metric: kl\nthresholds: [1, 0.1]\noptions: {steps: 5, signed: true}\nnone:\n")
    expected = {"metric": "kl", "thresholds": [1, 0.1], "options": {"steps": 5, "signed": True}, "none": None}
    assert read_yaml(path) == expected
    path.write_text('{"metric": "kl", "thresholds": [1, 0.1]}')
    assert read_yaml(path) == {"metric": "kl", "thresholds": [1, 0.1]}


@pytest.mark.parametrize(
    "text, value",
    [
        ("3:07", "3:07"),
        ("[1:4, 4:8]", ["1:4", "4:8"]),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("2020-01-01", "2020-01-01"),
        (".inf", ".inf"),
        ("1e-3", 0.001),
        ("-.5", -0.5),
        ("+2", 2),
        ("2.0", 2.0),
        ("~", None),
        ("TRUE", True),
        ("'7'", "7"),
        ("{<<: {b: 1}}", {"<<": {"b": 1}}),
    ],
)
def test_numbers_are_those_of_json(text, value, tmp_path):
    (tmp_path / "x.yaml").write_text(f"a: {text}")
    found = read_yaml(tmp_path / "x.yaml")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: &x [1]\nb: *x", r"got the alias \*x: write it out"),
        ("a: &x {b: *x}", r"got the alias \*x"),
        ("a: 1\nb: 2\na: 3", "expected each name once"),
        ("c: {a: 1, a: 2}", "expected each name once"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[1]: 2", "YAML"),
        ("a: [", "YAML"),
        ("a: \x07", "special characters are not allowed"),
        ("a: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "at most 20 lists and tables within each other"),
        ("[" * 20_000, "within each other"),
        ("- " * 20_000, "within each other"),
        ("a: " + "1" * 5000, "YAML"),
        ("a" * (LARGEST + 1), "bytes: expected a table of at most 65,536"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_what_grows_repeats_or_runs_is_refused(text, message, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(tmp_path / "x.yaml", "table")
    assert "x.yaml" in str(error.value)
