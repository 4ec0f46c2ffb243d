"""How a text settles, as an animated GIF or as one picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from transformers import PreTrainedTokenizerBase

from ..files import whole_file
from .loop import Frame


WIDTH, MARGIN, LINE_HEIGHT, FONT_SIZE = 960, 24, 34, 20
BLOCK_WIDTH = 26  # of a masked token
COLOURS = 32  # of an animation: enough for smooth letters
PAPER, INK, GIVEN, MASKED, FRESH = "#fdfdfb", "#1b1f24", "#6b7887", "#d5dade", "#d9480f"  # colours


@dataclass(frozen=True)
class Snapshot:
    """One text after one step."""

    tokens: tuple[int, ...]
    masked: tuple[bool, ...]
    generated: tuple[bool, ...]


class DenoisingRecorder:
    """A watcher that remembers how some texts of a batch settle."""

    def __init__(self, rows: Sequence[int]) -> None:
        self._seen: dict[int, list[Snapshot]] = {row: [] for row in rows}

    def __call__(self, frame: Frame) -> None:
        for index, row in enumerate(frame.rows):
            if row not in self._seen:
                continue
            real, seen = frame.canvas.real[index], self._seen[row]
            tokens, masked, generated = (
                tuple(each[index][real].tolist())
                for each in (frame.canvas.tokens, frame.canvas.masked, frame.canvas.generated)
            )
            if not seen:
                seen.append(Snapshot(tokens, generated, generated))  # before the first step
            if masked != seen[-1].masked:
                seen.append(Snapshot(tokens, masked, generated))

    def snapshots(self, row: int) -> list[Snapshot]:
        """From nothing to the whole text, without steps that changed nothing."""
        return self._seen[row]


def draw_denoising(
    snapshots: Sequence[Snapshot], tokenizer: PreTrainedTokenizerBase, path: Path, *, milliseconds: int = 180
) -> None:
    """Write `path`: as a GIF in which blocks become words, with those of the latest step in colour; as any other kind
    of picture the text with each word in the colour of its step, from blue for the first to red for the last."""
    if not snapshots:
        raise ValueError(f"There is nothing to draw in {path.name}: the text has no step.")
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".gif":
            first, *others = _animation(snapshots, tokenizer)
            durations = [milliseconds] * len(others) + [15 * milliseconds]
            first.save(temporary, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
        else:
            image = _picture(snapshots[-1], _step_colours(snapshots), tokenizer)
            image.save(temporary, format=Image.registered_extensions().get(path.suffix.lower(), "PNG"))


def _animation(snapshots: Sequence[Snapshot], tokenizer: PreTrainedTokenizerBase) -> list[Image.Image]:
    """A picture of each snapshot, and the last one again without colour; all of one size."""
    images = [
        _picture(snapshot, _fresh_colours(snapshots, step), tokenizer) for step, snapshot in enumerate(snapshots)
    ]
    images.append(_picture(snapshots[-1], _plain_colours(snapshots[-1]), tokenizer))
    height = max(image.height for image in images)
    return [_on_paper(image, height).quantize(COLOURS) for image in images]


def _plain_colours(snapshot: Snapshot) -> list[str]:
    return [INK if generated else GIVEN for generated in snapshot.generated]


def _fresh_colours(snapshots: Sequence[Snapshot], step: int) -> list[str]:
    """What this step revealed stands out."""
    now, before = snapshots[step], snapshots[max(0, step - 1)]
    plain = _plain_colours(now)
    changes = zip(before.masked, now.masked, plain, strict=True)
    return [FRESH if was_masked and not is_masked else colour for was_masked, is_masked, colour in changes]


def _step_colours(snapshots: Sequence[Snapshot]) -> list[str]:
    """The hue of the step that revealed each token."""
    last = snapshots[-1]
    colours = _plain_colours(last)
    for index, generated in enumerate(last.generated):
        if generated:
            step = next(number for number, each in enumerate(snapshots) if not each.masked[index])
            hue = 0.62 * (1 - step / max(1, len(snapshots) - 1))
            red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 0.75))
            colours[index] = f"#{red:02x}{green:02x}{blue:02x}"
    return colours


def _picture(snapshot: Snapshot, colours: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Image.Image:
    """The text in lines; a masked token is a block."""
    font = _font()
    placed: list[tuple[float, int, str | None, str]] = []  # x, line, text (None: a block), colour
    x, line = float(MARGIN), 0
    for token, masked, colour in zip(snapshot.tokens, snapshot.masked, colours, strict=True):
        first, *others = [None] if masked else _words(tokenizer, token)
        for number, text in enumerate((first, *others)):
            if number:  # after a line break in the text
                x, line = float(MARGIN), line + 1
            width = BLOCK_WIDTH if text is None else font.getlength(text)
            if x + width > WIDTH - MARGIN:
                x, line = float(MARGIN), line + 1
            placed.append((x, line, text, colour))
            x += width
    image = Image.new("RGB", (WIDTH, 2 * MARGIN + (line + 1) * LINE_HEIGHT), PAPER)
    drawing = ImageDraw.Draw(image)
    for left, row, text, colour in placed:
        top = MARGIN + row * LINE_HEIGHT
        if text is None:
            drawing.rounded_rectangle((left + 2, top + 3, left + BLOCK_WIDTH - 2, top + FONT_SIZE + 5), 4, MASKED)
        else:
            drawing.text((left, top), text, colour, font)
    return image


def _words(tokenizer: PreTrainedTokenizerBase, token: int) -> list[str]:
    """A token's text, one part for each of its lines; empty for BOS, EOS and the like."""
    text = tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.split("\n")


def _on_paper(image: Image.Image, height: int) -> Image.Image:
    """The same picture on a sheet of that height."""
    sheet = Image.new("RGB", (image.width, height), PAPER)
    sheet.paste(image)
    return sheet


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: it has most alphabets."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_SIZE)
