/** The report's style sheet: light and dark, from a phone to a printed page. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --page: #f4f6f8; --card: #ffffff; --ink: #1a212b; --muted: #5a6572; --rule: #dfe4e9; --link: #005a9c;
  --ok: #0b6b50; --ok-back: #e3f4ee; --alert: #a3330a; --alert-back: #fdece4;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --card: #161b22; --ink: #e8ecf1; --muted: #a3aebb; --rule: #2a323c; --link: #7cc0f5;
    --ok: #58d6ae; --ok-back: #10302a; --alert: #ffa679; --alert-back: #3b2015;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: 1rem; padding: .5rem 1rem; background: var(--card); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.page { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
h1 { margin: 0; font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 0 0 .75rem; font-size: 1.2rem; }
.window { margin: .35rem 0 1.25rem; color: var(--muted); }
a { color: var(--link); text-underline-offset: .15em; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1.25rem 0 0; padding: 0; list-style: none; }
section { margin-top: 2.25rem; }
.state {
  display: flex; gap: .75rem; align-items: baseline; margin: 0; padding: .8rem 1rem;
  border-left: 5px solid; border-radius: 6px; font-size: 1.05rem;
}
.state strong { text-transform: uppercase; letter-spacing: .05em; font-size: .85em; white-space: nowrap; }
.state span { color: var(--ink); }
.ok { color: var(--ok); background: var(--ok-back); }
.alert { color: var(--alert); background: var(--alert-back); }
.badge { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; font-size: .85em; font-weight: 600; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .9rem; margin: 0; }
dl div, .sheet, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
dl div { padding: .85rem 1rem; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; }
dd b { display: block; white-space: nowrap; font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; font-weight: 650; }
dd small { color: var(--muted); font-size: .85rem; }
.sheet { overflow-x: auto; }
.sheet:focus-visible, figure div:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { padding-left: 1rem; }
th:last-child, td:last-child { padding-right: 1rem; }
thead tr + tr th { padding-left: .55rem; padding-right: .55rem; }
caption { padding: .7rem 1rem 0; text-align: left; color: var(--muted); font-size: .85rem; }
th, td { padding: .5rem .55rem; text-align: right; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; font-size: .85rem; vertical-align: bottom; }
thead tr:first-child th[colspan] { text-align: center; border-bottom: 1px solid var(--rule); color: var(--ink); }
tbody tr { border-top: 1px solid var(--rule); }
.text { text-align: left; }
tbody th { text-align: left; font-weight: 600; }
.above { color: var(--alert); font-weight: 700; }
figure { margin: 0; overflow: hidden; }
figure div { overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { padding: .8rem 1.5rem 1rem; border-top: 1px solid var(--rule); color: var(--muted); font-size: .9rem; }
.note { color: var(--muted); font-size: .9rem; }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--muted); font-size: .9rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print {
  @page { margin: 14mm; }
  body { background: none; font-size: 10pt; }
  .page { max-width: none; padding: 0; }
  nav, .skip { display: none; }
  section { margin-top: 1.4rem; }
  figure, .sheet, dl div, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .sheet, figure div { overflow: visible; }
  figure svg { min-width: 0; }
  dd b { font-size: 1.15rem; }
  th, td { padding: .3rem .45rem; }
  .state, .badge { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
`;
