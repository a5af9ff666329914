"""The HTML page: one file with its script, styles and data inside, which asks for nothing from anywhere."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optland.config import UserError
from optland.report.charts import Chart

__all__ = ["Block", "Card", "Named", "Part", "Table", "render"]


@dataclass(frozen=True)
class Named:
    """A cell: a name to read, and the complete one below it.

    Attributes:
        words: The name to read.
        exact: The complete name.
    """

    words: str
    exact: str


@dataclass(frozen=True)
class Card:
    """One checkpoint in the summary: its name, and facts by their names.

    Attributes:
        title: Name of the checkpoint.
        facts: Texts by their names, in the order in which they stand.
    """

    title: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """Columns and rows; numbers are shown with four digits.

    Attributes:
        columns: A name for each column.
        rows: As many cells each as there are columns; NaN leaves a cell empty, and a :class:`Named` has two lines.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Block:
    """One finding: a heading, what it says in words, charts beside each other, and a table.

    Attributes:
        title: The heading.
        words: The reading of it.
        charts: By caption.
        table: Numbers.
    """

    title: str
    words: str
    charts: dict[str, Chart] = field(default_factory=dict)
    table: Table | None = None


@dataclass(frozen=True)
class Part:
    """A heading of the first order and what belongs under it.

    Attributes:
        title: The heading.
        blocks: Findings.
        lead: A sentence before them.
    """

    title: str
    blocks: Sequence[Block]
    lead: str = ""


def render(
    title: str,
    about: dict[str, str],
    notes: Sequence[str],
    parts: Sequence[Part],
    summary: Sequence[Card] = (),
) -> str:
    """The page as text.

    Args:
        title: The first heading.
        about: What was measured, by name.
        notes: Sentences about what is not as it should be.
        parts: The findings.
        summary: What comes first, a card for each checkpoint; without one, ``about`` does.

    Returns:
        HTML with plotly's script in it, some 5 MB; texts are escaped, and numbers of charts must be finite or None.

    Raises:
        UserError: plotly, whose script the page carries, is not installed.
    """
    figures: dict[str, Chart] = {}
    body = [_part(part, number, figures) for number, part in enumerate(parts)]
    cards = "".join(f"<div class=card><h3>{_text(c.title)}</h3>{_facts(c.facts)}</div>" for c in summary)
    top = (
        f'<section id="summary"><h2>Summary</h2><div class=cards>{cards}</div></section>'
        if cards
        else _facts(about)
    )
    end = f"<footer>{_facts(about)}</footer>" if cards else ""
    warned = "".join(f"<p class=note>{_text(note)}</p>" for note in notes)
    contents = "".join(f'<li><a href="#part{i}">{_text(p.title)}</a></li>' for i, p in enumerate(parts))
    data = json.dumps(figures, allow_nan=False).replace("</", "<\\/")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style></head>\n<body><main><header><h1>{_text(title)}</h1>{warned}</header>\n{top}\n"
        f"<nav><ul>{contents}</ul></nav>\n{''.join(body)}\n{end}</main>\n"
        f"<script>{_plotly()}</script>\n<script>const FIGURES = {data};\n{_SCRIPT}</script></body></html>\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{_text(k)}</dt><dd>{_text(v)}</dd>' for k, v in facts.items())}</dl>"


def _part(part: Part, number: int, figures: dict[str, Chart]) -> str:
    blocks = "".join(_block(block, figures) for block in part.blocks)
    lead = f"<p>{_text(part.lead)}</p>" if part.lead else ""
    return f'<section id="part{number}"><h2>{_text(part.title)}</h2>{lead}{blocks}</section>\n'


def _block(block: Block, figures: dict[str, Chart]) -> str:
    drawn = []
    for caption, chart in block.charts.items():
        name = f"chart{len(figures)}"
        figures[name] = chart
        height = int(chart["layout"]["height"])
        drawn.append(
            f'<figure><div class=chart id="{name}" style="min-height:{height}px" role="img" '
            f'aria-label="{_text(caption)}"></div><figcaption>{_text(caption)}</figcaption></figure>'
        )
    charts = f'<div class="charts{" one" if len(drawn) == 1 else ""}">{"".join(drawn)}</div>' if drawn else ""
    table = _table(block.table) if block.table is not None else ""
    return f"<article><h3>{_text(block.title)}</h3><p>{_text(block.words)}</p>{charts}{table}</article>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(c)}</th>" for c in table.columns)
    rows = "".join(
        f"<tr>{''.join(_cell(x, c) for x, c in zip(row, table.columns, strict=True))}</tr>"
        for row in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(value: object, column: str) -> str:
    """A cell that knows its column: on a narrow page every row becomes a list of them, and nothing is cut."""
    label = f'data-label="{_text(column)}"'
    if isinstance(value, float):
        return f"<td class=num {label}>{'' if math.isnan(value) else f'{value:.4g}'}</td>"
    if isinstance(value, Named):
        return f"<td {label}><span>{_text(value.words)}<small>{_text(value.exact)}</small></span></td>"
    return f"<td {label}>{_text(str(value))}</td>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("the report needs plotly; run: pip install 'optland[report]'") from error
    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script")


_STYLE = """
:root{--paper:#fff;--ink:#1d2433;--soft:#5a6477;--line:#dde2ea;--card:#f7f8fa;--accent:#2b6cb0}
@media (prefers-color-scheme:dark){:root{--paper:#14181f;--ink:#e4e8ef;--soft:#a3adbd;--line:#2d3542;--card:#1b212b;
--accent:#7fb2e5}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.7rem;line-height:1.2;margin:.3em 0}
h2{font-size:1.35rem;margin:2.2em 0 .5em;padding-top:.6em;border-top:1px solid var(--line);overflow-wrap:anywhere}
h3{font-size:1.05rem;margin:0 0 .4em}
p{max-width:76ch;margin:.4em 0 .9em}
a{color:var(--accent)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em;margin:.6em 0;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
nav ul{display:flex;flex-wrap:wrap;gap:.2em 1.2em;list-style:none;padding:0;margin:.8em 0}
article{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:14px 0}
.charts{display:grid;grid-template-columns:1fr 1fr;gap:14px}
.charts.one{grid-template-columns:1fr}
figure{margin:0;min-width:0}
figcaption{color:var(--soft);font-size:.85rem;margin-top:.2em}
.chart{width:100%;min-width:0;overflow:hidden}
.note{border-left:3px solid #d9822b;padding-left:.7em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:14px}
.card{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--accent);border-radius:10px;
padding:12px 16px}
.card h3{overflow-wrap:anywhere}
#summary h2{margin-top:.8em}
footer{margin-top:2.5em;border-top:1px solid var(--line);padding-top:.6em}
table{border-collapse:collapse;font-size:.88rem;margin-top:.6em;width:100%}
th,td{text-align:left;padding:.28em .8em .28em 0;border-bottom:1px solid var(--line);vertical-align:top}
td.num{font-variant-numeric:tabular-nums;white-space:nowrap}
small{display:block;color:var(--soft);font-size:.78rem;overflow-wrap:anywhere}
@media (max-width:760px){.charts{grid-template-columns:1fr}main{padding:12px 10px 40px}article{padding:12px 10px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.35em}
thead{display:none}tr{display:block;border-bottom:1px solid var(--line);padding:.35em 0}
td{display:grid;grid-template-columns:38% 1fr;gap:.6em;border:0;padding:.1em 0;overflow-wrap:anywhere}
td::before{content:attr(data-label);color:var(--soft)}
td:empty{display:none}td:first-child{display:block;font-weight:600}td:first-child::before{content:none}
td small{font-weight:400}}
"""

_SCRIPT = """
function colours(){const s=getComputedStyle(document.documentElement),g=n=>s.getPropertyValue(n).trim();
 return {ink:g('--ink'),line:g('--line'),soft:g('--soft')};}
function themed(layout){const c=colours(),out=JSON.parse(JSON.stringify(layout));
 out.paper_bgcolor='rgba(0,0,0,0)';out.plot_bgcolor='rgba(0,0,0,0)';out.font={color:c.ink,size:12};
 for(const k of ['xaxis','yaxis'])if(out[k]){const a=out[k];a.gridcolor=c.line;a.linecolor=c.soft;
  a.automargin=true;a.exponentformat='power';if(a.title&&a.title.text)a.title.standoff=10;}
 if(out.scene)for(const k of ['xaxis','yaxis','zaxis'])Object.assign(out.scene[k],
  {gridcolor:c.line,color:c.ink,showbackground:false});
 return out;}
const CONFIG={responsive:true,displaylogo:false,displayModeBar:false};
function drawAll(){for(const [id,f] of Object.entries(FIGURES))Plotly.react(id,f.data,themed(f.layout),CONFIG);}
drawAll();
const watcher=new ResizeObserver(all=>{for(const e of all)Plotly.Plots.resize(e.target);});
for(const id of Object.keys(FIGURES))watcher.observe(document.getElementById(id));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change',drawAll);
document.documentElement.dataset.drawn=Object.keys(FIGURES).length;
"""
