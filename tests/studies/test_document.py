"""YAML files that take memory or time, or surprise, are refused at once in one line that names the file."""

from __future__ import annotations

import time

import pytest

from stochprune import studies
from stochprune.studies import document

STUDY = """
title: T
job: initialisation
data: [digits]
models: [lenet_300_100]
seeds: 2
grid: [{scores: [snip], sparsities: [0.5]}]
settings: {per_class: 3}
"""
LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
NINES = "9" * 5000
BAD = {
    "billion laughs": (LAUGHS, "aliases"),
    "an alias of itself": ("&a [*a]", "aliases"),
    "a merge": (STUDY + "small: &s {seeds: 1}\nmore: {<<: *s}\n", "aliases"),
    "deep lists": ("[" * 50_000, "levels"),
    "deep mappings": ("{a: " * 1000, "levels"),
    "deep blocks": ("- " * 500 + "a", "levels"),
    "too large": ("#" * (1 << 20) + "\n" + STUDY, "larger than"),
    "no UTF-8": (b"title: \xff", "byte 7 is 0xff"),
    "slow to read": ("x: [" + "a," * (1 << 18) + "]\n" + STUDY, "larger than"),
    "a Python object": ("title: !!python/object/apply:os.system ['touch ran']", "line 1: tags"),
    "an unknown tag": ("title: !mine x", r"line 1: tags \(!mine\)"),
    "a truth that is none": ("title: !!bool x", "tags"),
    "a time that is none": ("title: !!timestamp x", "tags"),
    "a number that is none": ("title: !!int ''", "tags"),
    "a tagged list": ("title: !!set [x]", "tags"),
    "a number beyond all": ("title: 1" + ":0" * 300 + ".0", "base of sixty"),
    "a pattern without quotes": ("arms: {a: {method: one_shot, pattern: 2:4}}", 'line 1: 2:4 .*write "2:4"'),
    "a name without quotes": ("arms:\n  1:2: {method: one_shot}", 'line 2: 1:2 .*write "1:2"'),
    "an escape sequence": ('title: "\\e]0;hacked\\a"', "a control character"),
    "half a character": ('title: "\\ud800"', "half a character"),
    "a key twice": (STUDY + "seeds: 3\n", "'seeds'.*twice"),
    "a key twice inside": (STUDY.replace("per_class: 3", "per_class: 3, per_class: 4"), "'per_class'.*twice"),
    "a key that is true": (STUDY + "on: 3\n", "a key.*got True"),
    "a key that is a list": (STUDY + "? [a]\n: 3\n", r"a key.*got \['a'\]"),
    "a list": ("[1, 2]", r"got \[1, 2\]"),
    "nothing": ("", "got None"),
    "two documents": (STUDY + "---\n" + STUDY, "document"),
    "no YAML": ("title: [", "expected"),
    "a control character": ("title: \x00", "special characters"),
    "a date that is none": ("title: 2026-99-99", "month"),
    "a number of many digits": (f"seeds: {NINES}", "digits"),
}
CHANGES = [
    (("seeds: 2", "seeds: [1.5]"), r"seeds.*got \[1.5\]"),
    (("seeds: 2", "seeds: 1.5"), "seeds.*got 1.5"),
    (("seeds: 2", "seeds: on"), "seeds.*got True"),
    (("seeds: 2", "seeds: null"), "seeds.*got None"),
    (("seeds: 2", "seeds: 1000000000"), "make 1000000000 cells"),
    (("seeds: 2", "seeds: " + "9" * 100), "seeds .*2"),
    (("title: T", "title: on"), "title.*got True"),
    (("title: T", "title: 2026-01-01"), "title.*got datetime"),
    (("title: T", "title: T\nname: ../../x"), "name.*got '../../x'"),
    (("title: T", "title: T\nname: /etc/x"), "name.*got '/etc/x'"),
    (("title: T", "title: T\nname: .."), "name.*got '..'"),
    (("title: T", "title: T\nname: ''"), "name.*got ''"),
    (("data: [digits]", "data: digits"), "data.*got 'digits'"),
    (("data: [digits]", "data: [no]"), "data.*got False"),
    (("data: [digits]", "data: [/etc]"), "data.*got '/etc'"),
    (("data: [digits]", "data: [../private]"), r"data.*got '\.\./private'"),
    (("[0.5]", "[.nan]"), "sparsities.*got nan"),
    (("[0.5]", "[true]"), "sparsities.*got True"),
    (("[0.5]", f"[{'9' * 400}]"), "sparsities.*999"),
    (("per_class: 3", "weights: {lr: .inf}"), "weights: lr.*got inf"),
    (("per_class: 3", "weights: {lr: 1e400}"), "weights: lr.*got '1e400'"),
    (("{per_class: 3}", "[]"), r"got \[\]"),
    (("[snip]", "[{3: {}}]"), "key.*got 3"),
    (("[snip]", "[3]"), "score.*3"),
]


@pytest.mark.parametrize("name", BAD)
def test_documents_are_refused_at_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, message = BAD[name]
    (tmp_path / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"mine.yaml .*{message}") as caught:
        studies.load("mine.yaml")
    assert time.process_time() - start < 2 and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_values_are_refused_in_the_name_of_file_and_key(tmp_path, change, message):
    (tmp_path / "mine.yaml").write_text(STUDY.replace(*change, 1))
    with pytest.raises(ValueError, match=rf"mine.*{message}") as caught:
        for cell in studies.load(tmp_path / "mine.yaml").cells("digits"):
            assert cell
        raise ValueError("mine: sparsity was taken")
    assert "was taken" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_plain_document_is_read():
    assert document.loads("x", b"a: [1, 2.5, {b: null}]\nc: 'on'\n") == {"a": [1, 2.5, {"b": None}], "c": "on"}
