"""A sensitivity profile as a table on the terminal, and as one page with curves."""

import html
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from onnx_lathe.optimizer.report.units import shown
from onnx_lathe.optimizer.search.sensitivity import Point, Profile

COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d")
WIDTH, HEIGHT, MARGIN = 640, 300, 60
CURVES_PER_CHART = 8
"""More in one picture cannot be told apart."""


def show_profile(profile: Profile, console: Console) -> None:
    """A row for each layer, a column for each strength; the most sensitive first."""
    curves = profile.curves()
    strengths = list(dict.fromkeys(point.strength for point in profile.points))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("layer")
    for strength in strengths:
        table.add_column(_strength(profile.step, strength), justify="right")
    for layer in ranked(profile):
        cells = {
            point.strength: shown(profile.metric, point.metrics.get(profile.metric))
            for point in curves[layer]
        }
        table.add_row(curves[layer][0].node, *(cells.get(strength, "") for strength in strengths))
    if not console.is_terminal:
        console.width = 40 + 12 * len(strengths)
    base = profile.base.get(profile.metric)
    told = (
        f", {shown(profile.metric, base)} unchanged" if base is not None and profile.metric == "top1" else ""
    )
    console.print(f"{profile.metric} of {profile.model} with {profile.step} in one layer{told}", markup=False)
    console.print(table)
    for line in (profile.data, *profile.notes):
        console.print(line, markup=False)


def ranked(profile: Profile) -> list[str]:
    """Layers, the most sensitive first: by the mean over their strengths."""

    def mean(points: Sequence[Point]) -> float:
        return sum(min(point.metrics.get(profile.metric, 0.0), 200.0) for point in points) / len(points)

    curves = profile.curves()
    return sorted(curves, key=lambda layer: mean(curves[layer]))


def page(profile: Profile) -> str:
    """One self-contained HTML page: charts of up to eight layers each, and the numbers as a table."""
    order = ranked(profile)
    groups = [order[start : start + CURVES_PER_CHART] for start in range(0, len(order), CURVES_PER_CHART)]
    title = html.escape(f"Sensitivity of {profile.model}: {profile.step}")
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in (profile.data, *profile.notes))
    charts = "".join(_chart(profile, group, number) for number, group in enumerate(groups, 1))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{title}</h1>{notes}{charts}{_table(profile, order)}</main></body></html>\n"
    )


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --faint: #d1d5db; --ground: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --faint: #4b5563; --ground: #111827; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0; }
main { max-width: 960px; margin: 0 auto; padding: 16px; } h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
figure { margin: 16px 0; } svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 11px; }
.axis { stroke: var(--faint); } .scroll { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: 2px 10px; text-align: right; white-space: nowrap; } td:first-child, th:first-child { text-align: left; }
.key > span { white-space: nowrap; } .key i { display: inline-block; width: 12px; height: 12px; margin: 0 6px 0 12px; border-radius: 2px; }
"""


def _chart(profile: Profile, layers: Sequence[str], number: int) -> str:
    curves = profile.curves()
    strengths = list(dict.fromkeys(point.strength for layer in layers for point in curves[layer]))
    values = [_finite(point, profile.metric) for point in profile.points]  # one scale for all charts
    low, high = (
        min(values),
        max([*values, profile.base.get(profile.metric, 0.0) if profile.metric == "top1" else 0.0]),
    )
    high = high if high > low else low + 1.0

    def x(strength: object) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * strengths.index(strength) / max(1, len(strengths) - 1)  # type: ignore[arg-type]

    def y(value: float) -> float:
        return HEIGHT - MARGIN + (2 * MARGIN - HEIGHT) * (value - low) / (high - low)

    parts = [
        f'<line class="axis" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="4" y="{y(tick) + 4:.1f}">{html.escape(shown(profile.metric, tick))}</text>'
        for tick in (low, (low + high) / 2, high)
    ]
    parts += [
        f'<text x="{x(strength):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(_strength(profile.step, strength))}</text>'
        for strength in strengths
    ]
    keys = ""
    for layer, colour in zip(layers, COLOURS, strict=False):
        line = " ".join(f"{x(p.strength):.1f},{y(_finite(p, profile.metric)):.1f}" for p in curves[layer])
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(p.strength):.1f}" cy="{y(_finite(p, profile.metric)):.1f}" r="3" fill="{colour}"><title>'
            f"{html.escape(f'{p.node}, {_strength(profile.step, p.strength)}: {shown(profile.metric, p.metrics.get(profile.metric))}')}"
            "</title></circle>"
            for p in curves[layer]
        ]
        keys += f'<span><i style="background:{colour}"></i>{html.escape(curves[layer][0].node)}</span> '
    label = html.escape(f"{profile.metric} against the strength of {profile.step}, chart {number}")
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
        f'<figcaption class="key">{keys}</figcaption></figure>'
    )


def _table(profile: Profile, order: Sequence[str]) -> str:
    curves = profile.curves()
    strengths = list(dict.fromkeys(point.strength for point in profile.points))
    head = "".join(
        f'<th scope="col">{html.escape(_strength(profile.step, strength))}</th>' for strength in strengths
    )
    rows = ""
    for layer in order:
        cells = {
            point.strength: shown(profile.metric, point.metrics.get(profile.metric))
            for point in curves[layer]
        }
        row = "".join(f"<td>{html.escape(cells.get(strength, ''))}</td>" for strength in strengths)
        rows += f'<tr><th scope="row">{html.escape(curves[layer][0].node)}</th>{row}</tr>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="All figures"><table><thead><tr><th scope="col">layer</th>{head}'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _finite(point: Point, metric: str) -> float:
    return (
        max(-30.0, min(point.metrics.get(metric, 0.0), 150.0)) if metric == "sqnr" else point.metrics[metric]
    )


def _strength(step: str, value: object) -> str:
    if value is True:
        return step.partition("(")[0].upper()
    return f"{value:g}" if isinstance(value, int | float) else str(value)
