"""Settings files: what could be misread, or never ends, is an error that names the line."""

import time
from pathlib import Path

import pytest
import yaml as pyyaml

from common import yaml
from common.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def problem(text):
    with pytest.raises(InputError) as caught:
        yaml.parse(text, "run.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", "run.yaml:3: key 'a' is given twice"),
        ("a:\n  b: 1\n  'b': 2", "run.yaml:3: key 'b' is given twice"),
        ("a: [{b: 1, b: 1}]", "run.yaml:1: key 'b' is given twice"),
        ("a: 1\nb: .nan", "run.yaml:2: .nan is no finite number"),
        ("a: -.inf", "-.inf is no finite number"),
        ("a: 1.0e+999", "1.0e+999 is no finite number"),
        ("window: 010", "010 would be read to the base 8 or 60"),
        ("window: 1:30", "1:30 would be read to the base 8 or 60"),
        ("window: 190:20:30.15", "190:20:30.15 would be read to the base 8 or 60"),
        ("run: 2024-01-01", "2024-01-01 would be read as timestamp"),
        ("on: 1", "the key on would be read as a value (bool): quote it"),
        ("1: a", "the key 1 would be read as a value (int): quote it"),
        ("? [a]\n: b", "a key must be a name"),
        ("? {a: b}\n: b", "a key must be a name"),
        ("a: !!binary aGk=", "aGk= would be read as binary"),
        ("a: !!set {b}", "the tag tag:yaml.org,2002:set is not known"),
        ("a: !!python/object/apply:os.system ['x']", "python/object/apply:os.system is not known"),
        ("a: !function b", "b would be read as !function, which is not known"),
        ("a: !!int many", "is not valid YAML"),
        ("a: !!bool many", "is not valid YAML"),
        pytest.param("a: " + "9" * 5000, "is not valid YAML", id="5000 digits"),
        ("a: [", "run.yaml:2: is not valid YAML"),
        ("a: *b", "run.yaml:1: is not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: \x00", "is not valid YAML"),
        ("a: &a [*a]", "run.yaml:1: holds an alias of itself"),
        ("a: &a {b: {c: *a}}", "holds an alias of itself"),
        ("a: &a {<<: *a}", "holds an alias of itself"),
    ],
)
def test_what_could_be_misread_is_refused(text, told):
    assert told in problem(text)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)


DEEP = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))
ENDLESS = {
    "aliases": (LAUGHS, "run.yaml:5: stands for more than 100,000 values"),
    "merged keys": (MERGES, "stands for more than 100,000 values"),
    "lists": ("[" * 100_000, "run.yaml:1: is nested more than 32 deep"),
    "mappings": ("a: " + "{a: " * 5000, "is nested more than 32 deep"),
    "dashes": ("- " * 200 + "x", "is nested more than 32 deep"),
    "nested aliases": (DEEP, "is nested more than 32 deep"),
    "text": ("a: " + "x" * (2**20), "is longer than a YAML file may be (1,048,576 bytes)"),
    "values": ("a: [" + "x, " * 100_001 + "]", "stands for more than 100,000 values"),
}


@pytest.mark.parametrize(("text", "told"), ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_is_stopped_early(text, told):
    began = time.process_time()
    assert told in problem(text)
    assert time.process_time() - began < 5


def test_as_deep_as_is_allowed_is_read():
    depth = yaml.MOST_NESTED
    assert yaml.parse("[" * depth + "]" * depth, "x") == pyyaml.safe_load("[" * depth + "]" * depth)
    assert problem("[" * (depth + 1) + "]" * (depth + 1)) == (
        f"run.yaml:1: is nested more than {depth} deep"
    )


def test_anchors_and_merged_keys_are_read_as_yaml_means_them():
    text = "base: &b {x: 1, y: 2}\nlist: [*b, *b]\nmine: {<<: *b, y: 3}\nboth: {<<: [*b, {z: 4}]}\n"
    assert yaml.parse(text, "x") == pyyaml.safe_load(text)
    inner = "a: {b: &m {<<: &n {x: 1}, x: 2}}\nc: {<<: *m}\n"
    assert yaml.parse(inner, "x") == {"a": {"b": {"x": 2}}, "c": {"x": 2}}


def test_plain_values_keep_their_kind():
    text = (
        "a: 1\nb: '1'\nc: 1.5\nd: yes\ne: ~\nf: text\ng: 0x10\nh: 1_000\ni: 0\n"
        "j: '010'\nk: [1, two]\n"
    )
    assert yaml.parse(text, "x") == {
        "a": 1, "b": "1", "c": 1.5, "d": True, "e": None, "f": "text", "g": 16, "h": 1000, "i": 0,
        "j": "010", "k": [1, "two"],
    }  # fmt: skip
    assert yaml.parse("", "x") is None and yaml.parse("# nothing\n", "x") is None
    assert yaml.parse("a: !function b.c", "x", ("!function",)) == {"a": "b.c"}


@pytest.mark.parametrize("folder", ["configs", "tasks"])
def test_the_files_that_ship_are_read_as_pyyaml_reads_them(folder):
    class Loader(pyyaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    files = sorted((ROOT / folder).rglob("*.yaml"))
    assert files
    for file in files:
        theirs = pyyaml.load(file.read_text(encoding="utf-8"), Loader)
        assert yaml.read(file, ("!function",)) == theirs, file


def test_a_file_is_named_by_its_path(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\na: 2")
    with pytest.raises(InputError, match=f"^{tmp_path}/a.yaml:2: key 'a' is given twice$"):
        yaml.read(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match=r"a.yaml: is not UTF-8 \(byte 4\)"):
        yaml.read(tmp_path / "a.yaml")
