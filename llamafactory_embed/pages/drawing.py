"""Small pictures as SVG inside of a page: they take the page's colours, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape


WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 30  # margins, for the labels
BAR_HEIGHT, BAR_GAP, LABEL_WIDTH, VALUE_WIDTH = 26, 12, 250, 60


def curve(points: Sequence[tuple[int, float]], x_label: str) -> str:
    """A line through (step, value) with a few round labels at both axes."""
    if len(points) < 2:
        return "<p>Too few steps for a curve.</p>"
    steps, values = [step for step, _ in points], [value for _, value in points]
    ticks = round_ticks(min(values), max(values))
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - steps[0]) / (steps[-1] - steps[0]) * (WIDTH - LEFT - RIGHT)
        return x, TOP + (high - value) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    lines = []
    for tick in ticks:
        _, y = place(steps[0], tick)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for step, anchor in ((steps[0], "start"), (steps[-1], "end")):
        x, _ = place(step, low)
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{step}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    lines.append(f'<polyline class="curve" points="{path}"/>')
    return svg(WIDTH, HEIGHT, lines, f"{values[0]:.2f} to {values[-1]:.2f}")


def bars(values: Mapping[str, float], highlighted: str) -> str:
    """A horizontal bar for each value, with its name and the number."""
    longest = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    largest = max(*values.values(), 1e-9)
    lines = []
    for row, (name, value) in enumerate(values.items()):
        y = row * (BAR_HEIGHT + BAR_GAP)
        kind = "bar best" if name == highlighted else "bar"
        width = max(2.0, value / largest * longest)
        lines += [
            f'<text x="{LABEL_WIDTH - 10}" y="{y + 18}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="3"/>',
            f'<text class="value" x="{LABEL_WIDTH + width + 8:.1f}" y="{y + 18}">{value:.1f}</text>',
        ]
    height = len(values) * (BAR_HEIGHT + BAR_GAP) - BAR_GAP
    return svg(WIDTH, height, lines, ", ".join(f"{name}: {value:.1f}" for name, value in values.items()))


def svg(width: int, height: int, lines: Sequence[str], description: str) -> str:
    """The picture, which is as wide as its column; the description is for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(lines)}</svg>'
    )


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` multiples of 1, 2 or 5 (times a power of ten) that lie between two values."""
    span = (high - low) or 1.0
    size = 10.0**-6
    while span / size > count:
        digit = f"{size:.0e}"[0]
        size *= 2.5 if digit == "2" else 2
    first = int(low // size)
    ticks = [round(number * size, 6) for number in range(first, first + count + 3)]
    return [tick for tick in ticks if low - size / 4 <= tick <= high + size / 4] or [round(low, 3)]
