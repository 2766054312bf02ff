"""The page's style sheet: system fonts, one column of text, light and dark, readable at phone width."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #ffffff; --ink: #1d2129; --soft: #646b78; --line: #e3e1da;
  --accent: #1f5fa8; --null: #b9b6ad; --good: #23744a; --bad: #a8382c;
  --c0: #1f5fa8; --c1: #c2571a; --c2: #2c8a57; --c3: #7b4ba0; --c4: #8a6d1d; --c5: #50707c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1b1f26; --ink: #e4e6ea; --soft: #9aa2b0;
  --line: #2d333d; --accent: #79b0ee; --null: #5a6170; --good: #6fc796; --bad: #ee8d80;
  --c0: #79b0ee; --c1: #f0a06a; --c2: #79cf9f; --c3: #c39be6; --c4: #dcc06a; --c5: #9dbcc7; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 40px 20px 72px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 52px 0 4px; padding-top: 18px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 26px 0 8px; }
p { margin: 6px 0 14px; max-width: 70ch; }
.lead { font-size: 1.1rem; max-width: 62ch; }
.note, .unit, .missing { color: var(--soft); font-size: .88rem; }
.unit { font-weight: 400; }
code, .hash { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .86em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 1px; margin: 24px 0 10px;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.tile { padding: 14px 16px; box-shadow: 0 0 0 1px var(--line); }
.tile b { display: block; white-space: nowrap; font-size: 1.3rem; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .82rem; }
nav { font-size: .9rem; margin: 14px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 18px; }
figure { margin: 0; padding: 14px 14px 6px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
figcaption { font-weight: 600; font-size: .92rem; margin-bottom: 6px; display: flex; flex-wrap: wrap; gap: 2px 14px;
  align-items: baseline; }
figure svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.legend { margin-left: auto; font-weight: 400; font-size: .82rem; color: var(--soft); display: flex; gap: 12px; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle; background: var(--k); }
.c0 { --k: var(--c0); } .c1 { --k: var(--c1); } .c2 { --k: var(--c2); }
.c3 { --k: var(--c3); } .c4 { --k: var(--c4); } .c5 { --k: var(--c5); }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
.line { fill: none; stroke: var(--k); stroke-width: 1.8; stroke-linejoin: round; }
.line.faint { stroke-width: 1.2; opacity: .6; }
.dot circle { fill: var(--k); } .hit { fill: transparent; }
.hit:hover { fill: var(--ink); fill-opacity: .18; }
.wide { overflow-x: auto; } .wide + .wide { margin-top: 22px; } .bars { min-width: 110px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { font-weight: 600; } thead th { color: var(--soft); font-weight: 500; font-size: .82rem; }
td.n, th.n { text-align: right; white-space: nowrap; } tr > :last-child { padding-right: 0 !important; }
.scores td { border-bottom: 0; padding: 2px 12px 2px 0; } .scores tbody th { padding: 14px 0 4px; border-bottom: 0; }
.scores td.model { width: 9.5em; white-space: nowrap; } .scores td.track { width: 42%; }
.scores .main td.model, .scores .main td.score { font-weight: 600; } .scores .unit { font-weight: 400; }
.scores .null td { color: var(--soft); }
.bar { display: block; width: 100%; height: 12px; border-radius: 3px; }
.rail { fill: var(--line); opacity: .55; } .fill { fill: var(--accent); } .fill.other { opacity: .5; }
.fill.null { fill: var(--null); }
.whisker { stroke: var(--ink); stroke-width: 2; vector-effect: non-scaling-stroke; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 14px; }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px; }
.sample p { margin: 0 0 8px; white-space: pre-wrap; overflow-wrap: anywhere; max-width: none; }
.sample dl { display: grid; grid-template-columns: max-content 1.2em minmax(0, 1fr); gap: 3px 10px; margin: 0;
  font-size: .92rem; }
.sample dt { color: var(--soft); } .sample dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.lineage { max-width: 520px; }
.lineage text.stage { fill: var(--ink); font-size: 14px; font-weight: 600; } .lineage text { font-size: 12px; }
.lineage path { fill: none; stroke: var(--c0); stroke-width: 1.5; opacity: .75; } .lineage circle { fill: var(--c0); }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font-size: .82rem; line-height: 1.45; }
@media (max-width: 560px) { main { padding: 24px 14px 48px; } h1 { font-size: 1.6rem; }
  .scores td.model { width: 6.5em; } .scores .items { display: none; } .scores td.track { width: 34%; } }
@media print { body { background: #fff; } figure, .sample, tr { break-inside: avoid; } }
""".strip()
