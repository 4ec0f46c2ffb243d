"""Write data/words: made-up sentences with persons, places and organizations, for trying `stage: word-task`.

Names of the held-out part do not occur in the training part, so a classifier must read what stands around them.
"""

from __future__ import annotations

import random
from pathlib import Path


FOLDER = Path(__file__).parents[1] / "data" / "words"

NAMES = {
    "PER": (
        "Ada Brook;Tom Harrow;Lena Voss;Omar Idris;Mina Okafor;Piet Vandal;Rosa Lindt;Juri Malk;Clara Wendt;Ivo Stern;"
        "Nadia Roe;Hugo Farr;Elif Demir;Sam Tully;Greta Holm;Marek Zielny;Paula Reyes;Kenji Mori;Anneke;Tobias;Farah;"
        "Milan;Ruth Ames;Carl Aube;Noor;Edda Lunde;Felix;Bao Tran;Signe;Orla Finn"
    ),
    "LOC": (
        "Norwick;Lake Tamar;Eastmoor;Port Alder;Varna Hills;Kestrel Bay;Oldham Fen;Mirande;Sorrel Valley;Brunn;Halden;"
        "Cape Ilse;Dunmore;Tarsk;Little Wick;Montfer;Ravensholm;Upper Saale;Quill Island;Belford;Arden Wood;Lisk;"
        "Stonegate;Nether Hythe;Caldera;Thornby;West Orme;Palle;Greyfell;Anso"
    ),
    "ORG": (
        "Halcyon Bank;Meridian Press;Blue Heron Trust;Orbis;Stellan Works;North Line Rail;Acorn Foods;Tidewater Union;"
        "Lumen Labs;Castor and Sons;Vela Motors;Pinewood School;Argent Mills;Delphi Theatre;Kite Telecom;Borealis;"
        "Harbour Board;Quanta Steel;Ivory Records;Fenland Water;Crown Hotel Group;Zephyr Air;Granite Club;Salt Museum;"
        "Red Lantern;Ostara;Pilot Wines;Ember Insurance;Marlin Shipping;Willow Clinic"
    ),
}
PATTERNS = (
    "PER moved to LOC last spring .",
    "The road from LOC to LOC was closed on Monday .",
    "ORG opened a new office in LOC .",
    "PER has worked for ORG since the war .",
    "Nobody at ORG would speak with PER .",
    "In LOC , PER and PER met for the first time .",
    "Shares of ORG fell after the news from LOC .",
    "Yesterday PER sold the old mill near LOC .",
    "ORG and ORG signed a contract in the morning .",
    "Heavy rain is expected in LOC and around LOC .",
    "A letter from PER was found in the cellar .",
    "PER , who was born in LOC , now leads ORG .",
    "The committee thanked ORG for its help .",
    "There was no answer for three days .",
    "He paid the bill and went home early .",
    "At the station in LOC , PER bought a ticket .",
    "Workers of ORG went on strike in LOC .",
    "The painting belongs to PER and hangs in LOC .",
    "She asked whether PER had ever visited LOC .",
    "The price of bread rose again this week .",
)


def fill(pattern: str, names: dict[str, list[str]], draw: random.Random) -> list[tuple[str, str]]:
    """One sentence: words with their labels."""
    words: list[tuple[str, str]] = []
    for word in pattern.split():
        if word in names:
            for position, part in enumerate(draw.choice(names[word]).split()):
                words.append((part, f"{'I' if position else 'B'}-{word}"))
        else:
            words.append((word, "O"))
    return words


def main() -> None:
    """The same files every time."""
    draw = random.Random(0)
    split = {kind: text.split(";") for kind, text in NAMES.items()}
    parts = {
        "train": ({kind: names[:20] for kind, names in split.items()}, 400),
        "heldout": ({kind: names[20:] for kind, names in split.items()}, 120),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for part, (names, count) in parts.items():
        sentences = [fill(PATTERNS[number % len(PATTERNS)], names, draw) for number in range(count)]
        text = "\n".join("".join(f"{word}\t{label}\n" for word, label in sentence) for sentence in sentences)
        (FOLDER / f"{part}.conll").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
