"""The style of a run's report: one sheet, no font or picture from elsewhere, light and dark, down to 320 pixels."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #fcfbf8; --card: #ffffff; --ink: #1d1c1a; --soft: #6b665e; --line: #e6e2da; --wash: #f4f1eb;
  --first: #2c6496; --first-rgb: 44 100 150; --second: #c0692f; --second-rgb: 192 105 47; --warn: #8a5a00;
  --warn-wash: #fdf3dc; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #161614; --card: #1c1c1a; --ink: #ebe7df; --soft: #a09a90; --line: #32302c; --wash: #232220;
  --first: #7fb4e3; --first-rgb: 62 116 168; --second: #e59a63; --second-rgb: 190 104 48; --warn: #f0c674;
  --warn-wash: #2d2614; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Noto Sans", sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
main { max-width: 980px; margin: 0 auto; padding: 56px 28px 72px; }
h1 { margin: 0; font-size: 30px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; }
h2 { margin: 56px 0 16px; font-size: 18px; font-weight: 650; letter-spacing: -.005em; }
h3 { margin: 24px 0 8px; font-size: 15px; font-weight: 600; }
p { margin: 0 0 10px; max-width: 68ch; }
.soft, .eyebrow, figcaption .keys, dt, th { color: var(--soft); }
.eyebrow { margin: 0 0 6px; font-size: 13px; }
.lead { margin-top: 8px; color: var(--soft); max-width: none; }
.headline { display: flex; flex-wrap: wrap; align-items: end; gap: 6px 28px; margin: 36px 0 0; padding: 26px 28px;
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.headline .value { font-size: 60px; line-height: 1; font-weight: 650; letter-spacing: -.035em; white-space: nowrap; }
.headline .words { flex: 1 1 260px; padding-bottom: 3px; }
.headline .words b { font-weight: 600; }
.scale { flex-basis: 100%; margin-top: 18px; }
.scale .track { position: relative; height: 8px; border-radius: 4px; background: var(--wash); }
.scale .ends { display: flex; justify-content: space-between; margin-top: 5px; font-size: 12px; color: var(--soft); }
.track .range { position: absolute; top: 0; bottom: 0; border-radius: 4px; background: rgb(var(--first-rgb) / .38);
  min-width: 3px; }
.track .at { position: absolute; top: -2px; bottom: -2px; width: 3px; margin-left: -1.5px; border-radius: 2px;
  background: var(--first); }
.track .guess { position: absolute; top: -2px; bottom: -2px; width: 1px; background: var(--soft); }
.warnings { margin: 28px 0 0; padding: 0; list-style: none; }
.warnings li { margin: 0 0 10px; padding: 12px 16px; border-left: 3px solid var(--warn); border-radius: 0 8px 8px 0;
  background: var(--warn-wash); }
.warnings b { color: var(--warn); font-weight: 600; }
.calm { margin: 22px 0 0; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 18px; }
figure { margin: 0; }
.charts figure { padding: 16px 16px 10px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 14px; margin-bottom: 6px; }
figcaption b { font-weight: 600; }
.keys { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 13px; }
.keys span::before { content: ""; display: inline-block; width: 14px; height: 2.5px; margin-right: 6px;
  border-radius: 2px; vertical-align: 4px; background: var(--first); }
.keys .second::before { background: var(--second); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 10.5px; fill: var(--soft); }
.grid { stroke: var(--line); fill: none; }
.kept { stroke: var(--soft); stroke-dasharray: 2 3; fill: none; }
.curve { fill: none; stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; }
.curve.first { stroke: var(--first); } .curve.second { stroke: var(--second); }
.dot.first { fill: var(--first); } .dot.second { fill: var(--second); }
.hints circle { fill: transparent; } .hints circle:hover { fill: var(--soft); fill-opacity: .45; }
.note { margin: 12px 0 0; font-size: 13px; color: var(--soft); }
.wide { overflow-x: auto; padding-bottom: 4px; }
table { border-collapse: collapse; }
th { font-weight: 500; text-align: left; overflow-wrap: normal; }
.confusion { font-size: 13px; }
.confusion td { min-width: 30px; height: 30px; padding: 0 3px; text-align: center; border: 2px solid var(--paper);
  border-radius: 6px; background: var(--wash); }
.confusion td.right { background: rgb(var(--first-rgb) / var(--s)); }
.confusion td.wrong { background: rgb(var(--second-rgb) / var(--s)); }
.confusion td.deep { color: #fff; }
.confusion tbody th { padding: 0 10px 0 0; text-align: right; white-space: nowrap; position: sticky; left: 0;
  background: var(--paper); color: var(--ink); font-weight: 400; }
.confusion thead th { padding: 0 0 6px; vertical-align: bottom; text-align: center; color: var(--ink);
  font-weight: 400; }
.confusion thead th.tall bdi { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 150px; }
.confusion .corner { font-size: 12px; color: var(--soft); text-align: right; padding-right: 10px; }
.dense { font-size: 11px; } .dense td { min-width: 20px; height: 20px; padding: 0 1px; border-width: 1px; }
.beside { display: flex; flex-wrap: wrap; gap: 8px 48px; align-items: flex-start; }
.beside > * { max-width: 100%; } .beside .largest { flex: 1 1 300px; }
.beside h3 { margin-top: 4px; }
.pairs { margin: 10px 0 0; padding: 0; list-style: none; columns: 2 300px; column-gap: 36px; }
.pairs li { display: flex; justify-content: space-between; gap: 16px; padding: 5px 0; break-inside: avoid;
  border-bottom: 1px solid var(--line); }
.pairs .count { white-space: nowrap; color: var(--soft); }
.classes { width: 100%; }
.classes th, .classes td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
.classes td.figure, .classes th.figure { width: 34%; } .classes .n { text-align: right; padding-right: 22px; }
.both { display: grid; grid-template-columns: 62px minmax(40px, 1fr); gap: 10px; align-items: center; }
.both { white-space: nowrap; }
.both .track { position: relative; height: 6px; border-radius: 3px; background: var(--wash); }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 18px; }
.mistakes figure { min-width: 0; }
.mistakes .picture { display: flex; align-items: center; justify-content: center; aspect-ratio: 1; border-radius: 10px;
  overflow: hidden; background: var(--wash); border: 1px solid var(--line); }
.mistakes img { width: 100%; height: 100%; object-fit: contain; } .mistakes img.small { image-rendering: pixelated; }
.mistakes figcaption { display: block; margin: 7px 0 0; font-size: 13.5px; line-height: 1.4; }
.mistakes .said { color: var(--second); font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(110px, max-content) minmax(0, 1fr); gap: 7px 24px; margin: 0; }
dd { margin: 0; } code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { margin-top: 14px; border-top: 1px solid var(--line); padding-top: 12px; }
summary { cursor: pointer; font-weight: 600; } summary:hover { color: var(--first); }
.options { width: 100%; margin-top: 12px; }
.options td, .options th { padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
footer { margin-top: 64px; padding-top: 16px; border-top: 1px solid var(--line); font-size: 13px; color: var(--soft); }
@media (max-width: 560px) {
  main { padding: 32px 18px 48px; } h1 { font-size: 25px; } h2 { margin-top: 44px; }
  .headline { padding: 20px 18px; margin-top: 26px; } .headline .value { font-size: 50px; }
  .mistakes { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 14px; }
  .both { grid-template-columns: 1fr; gap: 4px; } .classes .n { padding-right: 14px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; }
  .confusion { font-size: 12px; } .confusion td { min-width: 26px; height: 26px; padding: 0; }
  .confusion tbody th { padding-right: 6px; } .options .default { display: none; } }
@media print { body { background: #fff; } main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""
