"""Two plots as SVG, coloured by the page's own variables so that they read in light and dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 42


def layer_errors(series: Mapping[str, Sequence[float]]) -> str:
    """Relative squared error of the hidden states after each layer, on a logarithmic scale; empty without points."""
    points = [value for values in series.values() for value in values if math.isfinite(value) and value > 0]
    count = max((len(values) for values in series.values()), default=0)
    if not points or count < 2:
        return ""
    low, high = math.floor(math.log10(min(points))), math.ceil(math.log10(max(points)) + 1e-9)
    vertical = _Scale(low, max(high, low + 1), HEIGHT - BOTTOM, TOP)
    across = _Scale(0, count - 1, LEFT, WIDTH - RIGHT)
    parts = [_decades(vertical)]
    step = max(1, math.ceil(count / 10))
    for layer in range(0, count, step):
        parts.append(_label(across(layer), HEIGHT - BOTTOM + 16, str(layer), "middle"))
    for colour, (name, values) in enumerate(series.items()):
        places = [
            (across(layer), vertical(math.log10(value)), f"{name}, layer {layer}: {value:.3g}")
            for layer, value in enumerate(values)
            if math.isfinite(value) and value > 0
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts.append(f'<polyline class="line c{colour % 4}" points="{line}"/>')
        parts += [
            f'<circle class="dot c{colour % 4}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(text)}</title></circle>'
            for x, y, text in places
        ]
    return _figure("after layer", "squared error, relative", list(series), parts)


def divergence_shares(series: Mapping[str, npt.NDArray[np.float64]]) -> str:
    """For each divergence, the share of positions that are worse; empty without positions."""
    finite = {name: np.sort(values[np.isfinite(values)]) for name, values in series.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    top = max((float(values[-1]) for values in finite.values()), default=0.0)
    if top <= 0:
        return ""
    high = math.ceil(math.log10(top) + 1e-9)
    across = _Scale(high - 5, high, LEFT, WIDTH - RIGHT)
    vertical = _Scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [_grid(vertical(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for decade in range(high - 5, high + 1):
        parts.append(_label(across(decade), HEIGHT - BOTTOM + 16, f"{10.0**decade:g}", "middle"))
    for colour, (name, values) in enumerate(finite.items()):
        places = []
        for part in range(121):
            at = high - 5 + part / 24
            share = 1 - float(np.searchsorted(values, 10.0**at, side="right")) / len(values)
            places.append(f"{across(at):.1f},{vertical(share):.1f}")
        line = (
            f'<polyline class="line c{colour % 4}" points="{" ".join(places)}"><title>{escape(name)}</title></polyline>'
        )
        parts.append(line)
    return _figure("KL divergence, nats", "share of positions above", list(finite), parts)


class _Scale:
    """Maps [low, high] onto [start, stop] of the picture."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high, self.start, self.stop = low, high, start, stop

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def _decades(vertical: _Scale) -> str:
    decades = range(int(vertical.low), int(vertical.high) + 1)
    return "".join(_grid(vertical(decade), f"{10.0**decade:g}") for decade in decades)


def _grid(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _label(LEFT - 6, y + 4, text, "end")


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(across: str, upwards: str, names: Sequence[str], parts: Sequence[str]) -> str:
    keys = []
    for colour, name in enumerate(names):
        shown = name if len(name) <= 24 else f"…{name[-23:]}"
        x, y = LEFT + 190 * colour, 16
        keys.append(f'<line class="line c{colour % 4}" x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}"/>')
        keys.append(_label(x + 28, y, shown, "start"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    axes = [
        _label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across, "middle"),
        f'<text class="axis" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(upwards)}</text>",
    ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join([*parts, *axes, *keys])}</svg>'
