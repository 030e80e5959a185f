"""The results as one SVG: a panel of bars for each scenario. Written by hand, no library."""

from html import escape

from benchmarks.run import Outcome, Results
from benchmarks.scenarios import Scenario

_COLUMNS, _PANEL_WIDTH, _GAP, _MARGIN = 2, 440, 28, 24
_BAR, _STEP, _HEAD = 14, 34, 44
_OURS, _PEER, _INK, _FAINT = "#0b7285", "#adb5bd", "#212529", "#868e96"

_STYLE = f"""
  text {{ font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: {_INK} }}
  .title {{ font-size: 13px; font-weight: 600 }}
  .faint {{ fill: {_FAINT}; font-size: 11px }}
  .ours {{ font-weight: 600 }}
"""


def svg(results: Results) -> str:
    panels = [
        (scenario, shown)
        for scenario, outcomes in results.scenarios
        if (shown := [outcome for outcome in outcomes if outcome.rounds])
    ]
    heights = [_HEAD + _STEP * len(outcomes) for _, outcomes in panels]
    parts, tops = [], [_MARGIN] * _COLUMNS
    for (scenario, outcomes), height in zip(panels, heights, strict=True):
        column = tops.index(min(tops))  # the next free place, highest up
        x = _MARGIN + column * (_PANEL_WIDTH + _GAP)
        parts.append(
            f'<g transform="translate({x},{tops[column]})">{_panel(scenario, outcomes)}</g>'
        )
        tops[column] += height + _GAP
    width = 2 * _MARGIN + _COLUMNS * _PANEL_WIDTH + (_COLUMNS - 1) * _GAP
    height = max(tops)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" aria-label="Benchmark results">\n<style>{_STYLE}</style>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(scenario: Scenario, outcomes: list[Outcome]) -> str:
    figure, unit = next(iter(scenario.figures.items()))
    medians = [outcome.median(figure) or 0.0 for outcome in outcomes]
    longest = max(medians) or 1.0
    better = "less is better" if scenario.less_is_better(figure) else "more is better"
    shown_unit = "" if unit.startswith("/") else f", {unit}"
    parts = [
        _text(0, 14, scenario.name, "title"),
        _text(0, 30, f"{figure}{shown_unit}; {better}", "faint"),
    ]
    one_contender = len({outcome.case.contender for outcome in outcomes}) == 1
    for row, (outcome, median) in enumerate(zip(outcomes, medians, strict=True)):
        y = _HEAD + row * _STEP
        ours = outcome.case.contender == "ordertrack"
        length = max(1.0, (_PANEL_WIDTH - 90) * median / longest)
        label = outcome.case.label if one_contender else outcome.title
        shown = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
        parts += [
            _text(0, y + 10, label, "ours" if ours and not one_contender else ""),
            _bar(y + 14, length, _OURS if ours else _PEER),
            _text(length + 6, y + 25, shown, ""),
        ]
    return "".join(parts)


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{style}">{escape(text)}</text>'


def _bar(y: float, length: float, colour: str) -> str:
    return f'<rect y="{y}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
