"""The look of report.html: one stylesheet, light and dark, for phone, desktop and paper.

Text has a contrast of 4.5 or more on every ground it stands on, and a plot's lines of 3 or more
(WCAG 2.2, 1.4.3 and 1.4.11); a test computes it from these tables.
"""

from __future__ import annotations

LIGHT = {
    "page": "#ffffff",
    "card": "#f3f5f7",
    "ink": "#191c20",
    "muted": "#525a63",
    "line": "#d3d8de",
    "yes": "#0a6430",
    "no": "#a61b1b",
    "unsure": "#754c00",
    "link": "#0b57a4",
    "series-1": "#0b62c4",
    "series-2": "#b4450a",
    "series-3": "#1b7a3d",
    "series-4": "#8436ad",
    "series-5": "#a3123f",
    "series-6": "#4c5a67",
}
DARK = {
    "page": "#14171a",
    "card": "#1e2327",
    "ink": "#e8eaed",
    "muted": "#aab2bb",
    "line": "#3b434b",
    "yes": "#6fd58d",
    "no": "#ff9a91",
    "unsure": "#f0bd55",
    "link": "#8cc2ff",
    "series-1": "#6cb2ff",
    "series-2": "#ff9d5c",
    "series-3": "#6fd58d",
    "series-4": "#d19cf5",
    "series-5": "#ff8aa5",
    "series-6": "#b5c0cb",
}


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
@media print {{ :root {{ {_variables(LIGHT)} }} }}
"""
    + """
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 {
  font-size: 1.25rem; line-height: 1.3; margin: 2.2rem 0 0.6rem; padding-top: 0.8rem;
  border-top: 1px solid var(--line);
}
h3 { font-size: 1rem; margin: 0 0 0.3rem; }
p, ul { margin: 0.6rem 0; }
p, li { max-width: 46rem; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
.muted, figcaption span { color: var(--muted); }
.verdict { background: var(--card); border-left: 5px solid var(--unsure); padding: 0.9rem 1rem; }
.verdict p { margin: 0.3rem 0; }
.verdict.yes { border-color: var(--yes); }
.verdict.no { border-color: var(--no); }
.ship { font-size: 1.15rem; font-weight: 650; }
.yes .ship b { color: var(--yes); }
.no .ship b { color: var(--no); }
.unsure .ship b { color: var(--unsure); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.tiles { margin: 1rem 0; }
.tiles section { background: var(--card); padding: 0.8rem 1rem; }
.tiles ul { list-style: none; margin: 0; padding: 0; }
.tiles li:first-child { font-weight: 650; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; }
nav a { display: inline-block; padding: 0.2rem 0; }
.wide { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.7rem 0.35rem 0; }
th, td { border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 500; }
th[scope="rowgroup"] { font-weight: 650; padding-top: 0.9rem; }
.compact { max-height: 34rem; overflow-y: auto; }
.compact table { font-size: 0.85rem; }
.compact th, .compact td { padding: 0.15rem 0.5rem 0.15rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.plots { gap: 1.2rem 2rem; margin: 1rem 0; }
figure { margin: 0; max-width: 36rem; break-inside: avoid; min-width: 0; }
figcaption { font-weight: 650; margin-bottom: 0.3rem; }
svg.plot { display: block; width: 100%; height: auto; stroke-linejoin: round; }
.legend { list-style: none; padding: 0; margin: 0.3rem 0; display: flex; flex-wrap: wrap; }
.legend { gap: 0.1rem 1rem; font-size: 0.9rem; }
details { font-size: 0.9rem; }
summary { color: var(--link); cursor: pointer; padding: 0.2rem 0; }
details .wide { max-height: 22rem; overflow-y: auto; }
.answers { margin: 1.2rem 0; break-inside: avoid; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.beside { gap: 0.8rem; }
blockquote { margin: 0; padding: 0.5rem 0.8rem; background: var(--card); white-space: pre-wrap; }
pre {
  background: var(--card); padding: 0.7rem 0.9rem; font-size: 0.9rem;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
footer { margin-top: 2.5rem; color: var(--muted); font-size: 0.9rem; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 40rem) {
  /* A table of many columns becomes a card a row, each figure under its column's name. */
  .stack table, .stack tbody, .stack tr, .stack th, .stack td { display: block; border: 0; }
  .stack thead { position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden; }
  .stack tr { border-bottom: 1px solid var(--line); padding: 0.5rem 0; }
  .stack tbody th { font-weight: 650; padding: 0.1rem 0; }
  .stack td { display: grid; grid-template-columns: 9rem 1fr; gap: 0.5rem; padding: 0.1rem 0; }
  .stack td { overflow-wrap: anywhere; }
  .stack td::before { content: attr(data-label); color: var(--muted); }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, details { display: none; }
  details.only { display: block; }
  h2, h3, figcaption { break-after: avoid; }
  tr { break-inside: avoid; }
  .wide, .compact, details .wide { overflow: visible; max-height: none; }
}
"""
)
