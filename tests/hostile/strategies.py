"""What strangers send: texts, values, JSON, YAML and bytes, and how good files become bad ones."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st


ODD_TEXTS = [
    "", " ", "\n", "\r\n", "\0", "a\0b", "\ufeff", "\u2028", "\x07", "../../../etc/passwd", "/etc/passwd", "..", "~",
    "-rf", "$(touch x)", "`touch x`", "; touch x", "{text}", "{", "${oc.env:HOME}", "${", "[", "none", "true", "1e999",
    "nan", "a" * 300,
    "http://user:password@host/", "\ud800", "a\udfffb", "\u202e", "é" * 40,
]  # fmt: skip
texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=12)
names = st.sampled_from(["query", "positive", "text", "id", "name", "path", "type"]) | texts
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 10**400, 1e308, 2**63])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
DEEP_JSON = [
    "[" * 9000,
    '{"a":' * 9000,
    '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
    "1" * 5000,
    '{"a": 1' + "0" * 5000 + "}",
]
BAD_BYTES = [
    b"",
    b"\xff\xfe",
    b"\0\0\0\0",
    b"\xef\xbb\xbf{}",
    b"\x1f\x8b\x08\x00",
    b"\xc3",
    b"PK\x03\x04",
    b"\x80\x04.",
]

# YAML whose few bytes stand for much, or for what no reader of ours expects.
BAD_YAML = [
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    ),
    "a: &a {<<: *a}", "a: &a [*a]", "? &a [*a]\n: 1", "a: &a {k: v}\nb: {<<: [*a, *a]}", "a: *b",
    "a: 2001-99-99", "a: 2001-01-01", "a: !!timestamp x", "a: !!bool x", "a: !!int ''", "a: !!int x", "a: !!float x",
    "a: !!python/object/apply:os.system ['touch x']", "a: !!binary x", "a: !!set {a, b}", "a: !!omap [a: 1]",
    "a: !!pairs [1]", "a: 0x" + "f" * 9000, "a: 1" + "0" * 5000, "a: 1:60:60:60", "a: .inf", "a: .nan", "a: 1e400",
    "[" * 5000, "a: " + "{a: " * 3000, "- - - -", "%YAML 9.9\n---\na: 1", "%TAG ! x\n---\na: !x 1", "a: \"\\ud800\"",
    "a: 1\na: 2", "1: 2\ntrue: 3\nnull: 4", "? [a, b]\n: c", "? {a: b}\n: c", "a:\tb", "\t", "a: |\n\tb",
    "--- a\n--- b", "a: '", 'a: "', "a: ${b}", "a: ${oc.env:HOME}", "a: ${a}", "${", "a: ${" * 50,
    "&a", "*", "!", "!!", "? ", "a: \x00", "\x01",
]  # fmt: skip


def json_files(*objects: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Files that should hold JSON: of these objects, of any values, cut off, or no JSON at all."""
    good = st.one_of(*objects, values).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    return good | cut(good) | st.sampled_from([text.encode() for text in DEEP_JSON]) | bad_bytes


def cut(files: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """The same files, not whole."""
    return st.tuples(files, st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]])


def flipped(content: bytes) -> st.SearchStrategy[bytes]:
    """A good file with some other bytes in it, or cut off."""
    places = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ends = st.integers(0, len(content)).map(lambda end: content[:end])
    return places.map(lambda changes: _flip(content, changes)) | ends


def _flip(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    flipped = bytearray(content)
    for place, value in changes:
        flipped[place] = value
    return bytes(flipped)


def changed(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A good object with other values, without some of its keys, or with keys that nobody knows."""
    return st.tuples(
        st.dictionaries(st.sampled_from(sorted(good)), values, max_size=3),
        st.sets(st.sampled_from(sorted(good)), max_size=2),
        st.just({}) | st.dictionaries(texts, values, max_size=1),
    ).map(lambda parts: {name: each for name, each in (good | parts[0]).items() if name not in parts[1]} | parts[2])


bad_bytes = st.sampled_from(BAD_BYTES) | st.binary(max_size=60)
yaml_files = st.sampled_from(BAD_YAML).map(lambda text: text.encode("utf-8", "surrogatepass")) | bad_bytes
