"""How the report looks: its style sheet, for light and dark, wide and narrow screens, and paper."""

__all__ = ["CSS"]

CSS = """
:root {
  color-scheme: light dark;
  --page: #fbfaf6; --card: #fff; --ink: #1d1e22; --soft: #5a5c63; --line: #dedbd1; --wash: #f3f0e7;
  --holds: #17683a; --fails: #b01220; --vacuous: #9a4a00; --refuted: #6d2fa3; --measured: #1c5a9e;
  --open: #6b6000;
  --s1: #1c5a9e; --s2: #b8480b; --s3: #147a5c;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia,
    "DejaVu Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1b1e23; --ink: #e9e7e1; --soft: #a5a7ad; --line: #353942;
    --wash: #23272e;
    --holds: #7fd39b; --fails: #ff8d87; --vacuous: #ffb468; --refuted: #c8a3f6; --measured: #8fc0f5;
    --open: #d8cd72;
    --s1: #8fc0f5; --s2: #ff9c66; --s3: #6fd3b0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 var(--sans);
  overflow-wrap: break-word; font-variant-numeric: tabular-nums;
}
main, header, footer { max-width: 77rem; margin: 0 auto; padding: 0 1.5rem; }
h1, h2, .statement, .lead { font-family: var(--serif); font-weight: 600; text-wrap: balance; }
h1 {
  font-size: clamp(1.75rem, 1.2rem + 2.4vw, 2.7rem); line-height: 1.12; letter-spacing: -.012em;
  margin: 3rem 0 .8rem;
}
h2 { font-size: 1.5rem; line-height: 1.2; margin: 3.2rem 0 .3rem; }
h2 small { font: 400 .9rem var(--sans); color: var(--soft); margin-left: .5rem; }
h3, h4 { font: 600 .95rem/1.4 var(--sans); margin: 0; }
h4 { margin: 1.4rem 0 .4rem; }
p { margin: 0 0 .6rem; max-width: 68ch; }
sub { line-height: 0; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .2em; }
a:hover { text-decoration-color: currentColor; }
:focus-visible { outline: 2px solid var(--measured); outline-offset: 3px; border-radius: 3px; }
code, pre { font-family: var(--mono); font-size: .86em; }
.lead {
  font-size: 1.24rem; line-height: 1.45; font-weight: 400; max-width: 62ch; text-wrap: pretty;
  color: var(--holds);
}
.lead.bad { color: var(--fails); font-weight: 600; }
.note, .caption { color: var(--soft); font-size: .92rem; text-wrap: pretty; }
.mark { width: .8em; height: .8em; flex: none; vertical-align: -.03em; overflow: visible; }
.holds { color: var(--holds); } .fails { color: var(--fails); } .vacuous { color: var(--vacuous); }
.refuted { color: var(--refuted); }
.measured { color: var(--measured); }
.open { color: var(--open); }
.is-holds { --edge: var(--holds); }
.is-fails { --edge: var(--fails); }
.is-vacuous { --edge: var(--vacuous); }
.is-refuted { --edge: var(--refuted); }
.is-measured { --edge: var(--measured); }
.is-open { --edge: var(--open); }
.outlines { position: absolute; }

.lesson {
  display: grid; grid-template-columns: minmax(0, 17rem) minmax(0, 1fr) minmax(0, 1fr); gap: 1.5rem
  2rem; margin: 2rem 0 0;
}
.lesson.bare { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.lesson figure { margin: 0; }
.lesson h3 { margin-bottom: .6rem; }
.lesson .caption { grid-column: 1 / -1; max-width: 92ch; margin: 0; }
.weights { border-collapse: collapse; font-size: .86rem; min-width: 60rem; width: 100%; margin: .8rem 0 1.6rem; }
.weights th { text-align: left; font-weight: 600; padding: .3rem .7rem .3rem 0; vertical-align: bottom; }
.weights td { padding: .3rem .7rem .3rem 0; border-top: 1px solid var(--line); vertical-align: top; }
.weights td:nth-child(6) { white-space: nowrap; }
.weights td:nth-last-child(-n+2), .weights th:nth-last-child(-n+2) { text-align: right; white-space: nowrap; }
.sizes { border-collapse: collapse; font-size: .86rem; min-width: 56rem; width: 100%; margin: .8rem 0 1.6rem; }
.sizes th, .sizes td { padding: .25rem .7rem .25rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
.sizes .word { text-align: left; }
.sizes thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
.sizes th:first-child { text-align: left; white-space: normal; font-weight: 400; min-width: 15rem; }
.sizes thead th:first-child { font-weight: 600; }
.sizes tbody th, .sizes td { border-top: 1px solid var(--line); }
.sizes small { display: block; color: var(--soft); font-size: .8rem; max-width: 34rem; }
.many > summary { cursor: pointer; font-weight: 600; margin: 1rem 0; }
.said p { font: 400 1.15rem/1.45 var(--serif); max-width: 62ch; text-wrap: pretty; }
.figure { margin: 1.6rem 0; }
.figure svg { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.certificate { color: var(--holds); font-size: .92rem; border-left: 3px solid var(--holds); padding-left: .7rem; }
.band { max-width: 77rem; margin: 0 auto; padding: 0 1.5rem; }
.ledger figure { margin: 1.4rem 0 0; }
.ledger h3 { margin-bottom: .4rem; }
.wide { overflow-x: auto; }
.signs { border-collapse: collapse; font-size: .9rem; min-width: 46rem; width: 100%; }
.signs th { font-weight: 600; text-align: right; padding: .25rem .6rem; white-space: nowrap; }
.signs th[colspan] { text-align: center; border-left: 1px solid var(--line); }
.signs thead tr + tr th { font-weight: 400; color: var(--soft); }
.signs tbody th { text-align: left; font-weight: 400; padding-left: 0; position: sticky; left: 0; background: var(--page); }
.signs td { text-align: right; padding: .25rem .6rem; border-top: 1px solid var(--line); }
.signs tbody th { border-top: 1px solid var(--line); }
.signs thead td { border: 0; }
.signs td.down { color: var(--holds); }
.signs td.up { color: var(--fails); }
.signs td small { display: block; color: var(--soft); font-size: .78rem; white-space: nowrap; }
.photo { position: relative; line-height: 0; border-radius: 4px; overflow: hidden; }
.photo img { width: 100%; height: auto; }
.photo svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.patches {
  stroke: #fff; stroke-opacity: .34; fill: none; vector-effect: non-scaling-stroke; stroke-width:
  .7;
}
.one { fill: none; stroke: #ffd84a; stroke-width: 2.2; vector-effect: non-scaling-stroke; }
.chart { width: 100%; height: auto; display: block; }
.chart text { font: 13px var(--sans); fill: currentColor; }
.chart .tick { fill: var(--soft); font-size: 12px; }
.chart .grid { stroke: var(--line); stroke-width: .8; }
.chart .axis { stroke: var(--soft); stroke-width: 1; }
.chart .slope { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.line path { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.line circle, .scatter circle { fill: currentColor; }
.line text { font-weight: 600; } .line .value { font-weight: 400; }
.s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.scatter circle { fill-opacity: .55; } .scatter .axis { stroke: var(--line); }
.small { max-width: 24rem; }

.map {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 0
  2.5rem; list-style: none; padding: 0; margin: 1rem 0;
}
.map li {
  display: grid; grid-template-columns: minmax(0, 9.5rem) 1fr; gap: .5rem; align-items: center;
  border-bottom: 1px solid var(--line); padding: .35rem 0;
}
.map span { display: flex; flex-wrap: wrap; }
.map span a {
  display: grid; place-items: center; width: 1.5rem; height: 1.5rem; border-radius: 4px;
}
.map span a:hover { background: var(--wash); }
.key {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap:
  .55rem 2.5rem; font-size: .92rem; margin: 1rem 0 0;
}
.key div { display: grid; grid-template-columns: 7rem 1fr; gap: .4rem; }
.key dt { font-weight: 600; } .key dt .mark { margin-right: .45em; }
.key dd { margin: 0; color: var(--soft); }

.claim {
  display: grid; grid-template-columns: 8.2rem minmax(0, 1fr) 21rem; gap: 0 2rem; padding: 1.5rem 0
  1.2rem; border-top: 1px solid var(--line); break-inside: avoid-page;
}
.group > .claim:nth-of-type(1) { border-top: 2px solid var(--ink); margin-top: .7rem; }
.claim:target {
  background: linear-gradient(var(--wash), var(--wash)) padding-box; box-shadow: -.8rem 0 0
  var(--wash), .8rem 0 0 var(--wash);
}
.status { font-weight: 650; display: flex; gap: .5em; align-items: baseline; }
.status small { display: block; font-weight: 400; color: var(--soft); font-size: .82rem; }
.claim h3 { font: 500 .84rem var(--mono); color: var(--soft); }
.claim h3 a { text-decoration: none; } .claim h3 a:hover { text-decoration: underline; }
.statement {
  font-size: 1.18rem; line-height: 1.36; font-weight: 400; margin: .1rem 0 .3rem; text-wrap: pretty;
}
.equation {
  overflow-x: auto; overflow-y: hidden; padding: .3rem 0 .6rem; font: 1.2rem/2.3 var(--serif);
}
.math svg { fill: currentColor; overflow: visible; max-width: none; }
.words { font-size: .88em; }
.quad { display: inline-block; width: 1.4em; }
.false {
  border-left: 3px solid var(--refuted); padding: .1rem 0 .1rem .9rem; margin: .5rem 0 .7rem;
}
.false strong { color: var(--refuted); } .false p { margin: .15rem 0; }
.problem {
  border-left: 3px solid currentColor; padding: .1rem 0 .1rem .9rem; margin: .5rem 0 .7rem;
  font-weight: 600;
}
.origin { font-size: .88rem; color: var(--soft); margin: 0; max-width: none; }
.origin code { font-size: .82rem; letter-spacing: -.02em; white-space: nowrap; }
.numbers { font-size: .88rem; }
.numbers dl { display: grid; grid-template-columns: auto 1fr; gap: .05rem .6rem; margin: .2rem 0 0; }
.numbers dt { color: var(--soft); } .numbers dd { margin: 0; text-align: right; }
.ruler { width: 100%; max-width: 20rem; display: block; overflow: visible; }
.ruler text { font: 10px var(--sans); fill: var(--soft); text-anchor: middle; }
.ruler .axis { stroke: var(--soft); } .ruler .limit { stroke: var(--ink); stroke-width: 2; }
.ruler .allowed { fill: var(--holds); fill-opacity: .16; }
.ruler .error { fill: var(--ink); } .ruler .bad { fill: var(--fails); }
.ruler .real { fill: none; stroke: var(--s2); stroke-width: 1.8; }
.tally { display: flex; flex-wrap: wrap; gap: 2px; justify-content: end; align-items: center; }
.tally i { width: 6px; height: 9px; background: var(--holds); border-radius: 1px; }
.tally i.alive { background: none; border: 2px solid var(--fails); width: 10px; height: 11px; }
.tally b { font-weight: 600; margin-right: .3rem; }

details > summary { cursor: pointer; color: var(--soft); font-size: .9rem; width: fit-content; }
details > summary:hover { color: var(--ink); }
.claim > details { grid-column: 2 / -1; margin-top: .7rem; min-width: 0; }
.inside {
  background: var(--wash); border-radius: 6px; padding: .4rem 1.2rem 1.2rem; margin-top: .6rem;
  font-size: .92rem;
}
.facts {
  display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.4rem; margin:
  .6rem 0;
}
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.columns figure { margin: 0; }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 24rem); gap: 0 2.5rem; }
.table { overflow-x: auto; }
@media (min-width: 42.01rem) { .wrong td:nth-child(2) { white-space: nowrap; } }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .86rem; }
td, th { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.n { text-align: right; white-space: nowrap; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 4px; padding: .7rem .9rem;
  margin: .4rem 0; overflow-x: auto; max-width: 100%; line-height: 1.45; white-space: pre-wrap;
  overflow-wrap: anywhere;
}
footer {
  margin-top: 4rem; padding-bottom: 4rem; font-size: .92rem;
}
footer h2 { margin-top: 1.6rem; }
footer h2:first-child { border-top: 2px solid var(--ink); padding-top: 1.2rem; }

@media (max-width: 62rem) {
  .claim { grid-template-columns: minmax(0, 1fr) minmax(0, 18rem); }
  .status { grid-column: 1 / -1; margin-bottom: .3rem; }
  .status small { display: inline; margin-left: .4em; }
  .claim > details { grid-column: 1 / -1; }
  .lesson { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .lesson .picture { grid-column: 1 / -1; max-width: 22rem; }
}
@media (max-width: 42rem) {
  main, header, footer { padding: 0 1rem; }
  h1 { margin-top: 1.8rem; }
  .lesson, .lesson.bare, .columns { grid-template-columns: minmax(0, 1fr); }
  .lesson .picture { max-width: none; }
  .claim, .group > .claim:nth-of-type(1) {
    display: block; background: var(--card); border: 1px solid var(--line); border-top: 3px solid
    var(--edge);
    border-radius: 6px; padding: 1rem; margin: 1rem 0;
  }
  .claim:target { box-shadow: 0 0 0 3px var(--wash); background: var(--card); }
  .numbers { margin-top: .9rem; }
  .origin code { white-space: normal; overflow-wrap: anywhere; }
  .inside { padding: .3rem .8rem .8rem; margin-inline: -.3rem; }
  .facts { grid-template-columns: minmax(0, 1fr); } .facts dt { margin-top: .4rem; }
  .key div { grid-template-columns: 6.4rem 1fr; }
  .wrong, .wrong tbody, .wrong td { display: block; } .wrong th { display: none; }
  .wrong tr {
    display: grid; grid-template-columns: minmax(0, 1fr) auto auto; gap: 0 .9rem; padding: .5rem 0;
    border-bottom: 1px solid var(--line);
  }
  .wrong td { border: 0; padding: 0; } .wrong td:last-child { grid-column: 1 / -1; }
}
@media print {
  :root { --page: #fff; --wash: #f6f6f4; }
  body { font-size: 9.5pt; }
  main, header, footer { max-width: none; padding: 0; }
  h1 { margin-top: 0; }
  details:not([open]) { display: none; }
  h2 { break-after: avoid; }
  .lesson, .map li { break-inside: avoid; }
  pre { white-space: pre-wrap; }
}
"""
