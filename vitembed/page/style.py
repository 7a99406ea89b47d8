"""The look of a report: light and dark by the reader's own setting, narrow screens and paper too."""

STYLE = """
:root { color-scheme: light dark; --back: #f6f6f4; --card: #fff; --text: #1c1c1a; --soft: #6b6b66; --line: #dddcd6;
  --curve: #2f6fb3; --good: #1a7f4b; --unsure: #a86a00; --bad: #c0362c; }
@media (prefers-color-scheme: dark) { :root { --back: #161615; --card: #222220; --text: #ecebe6; --soft: #a3a29b;
  --line: #3a3935; --curve: #7db4f0; --good: #4cc38a; --unsure: #f0b040; --bad: #ff8a7d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .7rem; }
.soft { color: var(--soft); }
header p { margin: .2rem 0 1.2rem; }
.chip { font-size: .8rem; font-weight: 500; vertical-align: middle; padding: .15rem .6rem; border-radius: 1rem;
  border: 1px solid var(--line); color: var(--soft); white-space: nowrap; }
section { margin: 0 0 1.4rem; }
.verdict, .alarms li { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--tone);
  border-radius: .6rem; padding: .9rem 1.2rem; }
.verdict h2 { font-size: 1.3rem; color: var(--tone); margin-bottom: .3rem; }
.verdict ul { margin: 0; padding-left: 1.2rem; }
.good { --tone: var(--good); } .unsure { --tone: var(--unsure); } .bad { --tone: var(--bad); }
.alarms ul { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.alarms li { --tone: var(--unsure); } .alarms li.over { --tone: var(--line); }
.alarms p { margin: .25rem 0 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem; margin: 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .5rem .8rem; }
dt { color: var(--soft); font-size: .8rem; }
.long { grid-column: span 2; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; padding: .4rem .8rem; border-top: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
th, td:first-child { white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; border-top: 0; }
td:last-child { overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: .8rem; }
.curve, .sheet { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .7rem .9rem; }
.curve figcaption { display: flex; justify-content: space-between; gap: 1rem; margin-bottom: .3rem; }
.curve figcaption i { font-style: normal; font-variant-numeric: tabular-nums; white-space: nowrap; }
.curve p { margin: .2rem 0 0; color: var(--soft); font-size: .82rem; line-height: 1.4; }
svg { display: block; width: 100%; height: auto; overflow: visible; font: 11px system-ui, sans-serif; }
svg .line { fill: none; stroke: var(--curve); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .tick { stroke: var(--line); stroke-width: 1; }
svg .level.end { fill: var(--soft); paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg line.level { stroke: var(--soft); stroke-dasharray: 4 4; }
svg .num { fill: var(--soft); font-variant-numeric: tabular-nums; } svg .end { text-anchor: end; }
svg .dot { fill: var(--curve); } svg .best { fill: var(--good); stroke: var(--card); stroke-width: 1.5; }
.sheets { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: .8rem; }
.sheet { max-width: 36rem; } .sheet figcaption { margin-bottom: .4rem; font-size: .9rem; }
.sheet img { display: block; width: 100%; height: auto; border-radius: .3rem; }
details { margin-top: .7rem; } summary { cursor: pointer; }
.paths { margin: .3rem 0 0; font-size: .85rem; overflow-wrap: anywhere; }
.settings td { font: .82rem/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; padding: .15rem .8rem; }
.settings .own td { font-weight: 700; }
@media (max-width: 36rem) { body { padding: .8rem; } .long { grid-column: auto; } }
@media print { details { display: block; } }
"""
