import { Html, html } from "./html.ts";
import type { Metrics, Range, SiteMetrics } from "./metrics.ts";
import type { Plot } from "./plots.ts";
import { type Alert, hoursAbove, type Status } from "./status.ts";
import { STYLE } from "./style.ts";

/** Nothing but what is in the page itself: no scripts, nothing to load. */
const CONTENT_POLICY =
  "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";

export interface Report {
  readonly title: string;
  readonly metrics: Metrics;
  readonly status: Status;
  readonly plots: readonly Plot[];
}

/** One HTML document with everything in it; only `status.json`, `metrics.json` and `plots/` are linked, relative to it. */
export function renderReport(report: Report): string {
  const { title, metrics, status, plots } = report;
  const page = html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <meta http-equiv="Content-Security-Policy" content="${CONTENT_POLICY}" />
        <link rel="icon" href="data:," />
        <title>${title}, ${span(metrics.window)}</title>
        <style>
          ${new Html(STYLE)}
        </style>
      </head>
      <body>
        <a class="skip" href="#summary">Skip to the summary</a>
        <div class="page">
          <header>
            <h1>${title}</h1>
            <p class="window">${spanWithTimes(metrics.window)}</p>
            ${verdict(status)}
            <nav aria-label="Sections">
              <ul>
                <li><a href="#summary">Summary</a></li>
                <li><a href="#alerts">Alerts</a></li>
                <li><a href="#sites">Sites</a></li>
                ${plots.map((plot) => html`<li><a href="#${anchor(plot)}">${new Html(plot.title)}</a></li> `)}
                <li><a href="#data">Data</a></li>
              </ul>
            </nav>
          </header>
          <main>
            ${summary(metrics)} ${alerts(status)} ${sites(metrics, status)}
            ${plots.map((plot) => figure(plot))}${thresholdNote(metrics, status)}
          </main>
          ${footer(metrics, plots)}
        </div>
      </body>
    </html> `;
  return page.markup;
}

function verdict({ state, alerts: found, pm25ThresholdUgM3: threshold }: Status): Html {
  if (state === "ok") {
    return html`<p class="state ok">
      <strong>OK</strong> <span>PM2.5 stayed at or below ${threshold} µg/m³ at every site.</span>
    </p>`;
  }
  const places = [...new Set(found.map(({ site }) => site))];
  return html`<p class="state alert">
    <strong>Alert</strong> <span>PM2.5 rose above ${threshold} µg/m³ at ${list(places)}.</span>
  </p>`;
}

function summary({ sites: all }: Metrics): Html {
  const instruments = sum(all.map((site) => site.instruments));
  const readings = sum(all.map((site) => site.readings));
  const expected = sum(all.map((site) => site.expectedReadings));
  const coldest = all.reduce((best, site) => (site.temperatureC.min < best.temperatureC.min ? site : best));
  const warmest = all.reduce((best, site) => (site.temperatureC.max > best.temperatureC.max ? site : best));
  const dirtiest = all.reduce((best, site) => (highestHour(site) > highestHour(best) ? site : best));
  const extremes =
    coldest.site === warmest.site
      ? `at ${coldest.site}`
      : `lowest at ${coldest.site}, highest at ${warmest.site}`;
  const cards: [name: string, value: string, detail: string][] = [
    ["Highest hourly PM2.5", `${decimal(highestHour(dirtiest))} µg/m³`, `at ${dirtiest.site}`],
    [
      "Temperature",
      `${decimal(coldest.temperatureC.min)} to ${decimal(warmest.temperatureC.max)} °C`,
      extremes,
    ],
    ["Instruments", String(instruments), `at ${all.length} ${all.length === 1 ? "site" : "sites"}`],
    [
      "Data completeness",
      percent(Math.min(1, readings / expected)),
      `${readings} of ${expected} expected readings`,
    ],
  ];
  return html`<section id="summary" aria-labelledby="summary-heading">
    <h2 id="summary-heading">Summary</h2>
    <dl>
      ${cards.map(
        ([name, value, detail]) =>
          html`<div>
            <dt>${name}</dt>
            <dd><b>${value}</b><small>${detail}</small></dd>
          </div> `,
      )}
    </dl>
  </section>`;
}

function alerts({ alerts: found, pm25ThresholdUgM3: threshold }: Status): Html {
  const body =
    found.length === 0
      ? html`<p>No site had an hourly mean of PM2.5 above ${threshold} µg/m³.</p>`
      : sheet(
          "Alerts",
          html`<table>
            <caption>
              Hours in a row with a mean of PM2.5 above ${threshold} µg/m³. Times are UTC.
            </caption>
            <thead>
              <tr>
                <th scope="col" class="text">Site</th>
                <th scope="col" class="text">Day</th>
                <th scope="col" class="text">From – to</th>
                <th scope="col">Hours</th>
                <th scope="col">Highest hourly mean</th>
              </tr>
            </thead>
            <tbody>
              ${found.map((alert) => alertRow(alert))}
            </tbody>
          </table>`,
        );
  return html`<section id="alerts" aria-labelledby="alerts-heading">
    <h2 id="alerts-heading">Alerts</h2>
    ${body}
  </section>`;
}

function alertRow(alert: Alert): Html {
  return html`<tr>
    <th scope="row">${alert.site}</th>
    <td class="text">${day(alert.from)}</td>
    <td class="text">${clock(alert.from)} – ${endClock(alert.to)}</td>
    <td>${alert.hours}</td>
    <td><span class="above">${decimal(alert.peakUgM3)} µg/m³</span> at ${clock(alert.peakHour)}</td>
  </tr> `;
}

function sites({ sites: all }: Metrics, status: Status): Html {
  const ranges = new Html('<th scope="col">min</th><th scope="col">mean</th><th scope="col">max</th>');
  return html`<section id="sites" aria-labelledby="sites-heading">
    <h2 id="sites-heading">Sites</h2>
    ${sheet(
      "Figures by site",
      html`<table>
        <caption>
          All readings of a site's instruments; PM2.5 as hourly means.
        </caption>
        <thead>
          <tr>
            <th scope="col" rowspan="2" class="text">Site</th>
            <th scope="col" rowspan="2" class="text">State</th>
            <th scope="colgroup" colspan="3">Temperature (°C)</th>
            <th scope="colgroup" colspan="3">Relative humidity (%)</th>
            <th scope="colgroup" colspan="3">PM2.5 (µg/m³)</th>
            <th scope="col" rowspan="2">Battery<br />(V)</th>
            <th scope="col" rowspan="2">Data<br />complete</th>
          </tr>
          <tr>
            ${ranges}${ranges}
            <th scope="col">mean</th>
            <th scope="col">max</th>
            <th scope="col">hours<br />above ${status.pm25ThresholdUgM3}</th>
          </tr>
        </thead>
        <tbody>
          ${all.map((site) => siteRow(site, status))}
        </tbody>
      </table>`,
    )}
  </section>`;
}

function siteRow(site: SiteMetrics, { sites: states, pm25ThresholdUgM3: threshold }: Status): Html {
  const state = states.find((item) => item.site === site.site)?.state ?? "ok";
  const above = hoursAbove(site, threshold);
  const highest = highestHour(site);
  const marked = (text: string, isAbove: boolean): Html =>
    isAbove ? html`<td class="above">${text}</td>` : html`<td>${text}</td>`;
  return html`<tr>
    <th scope="row">${site.site}</th>
    <td class="text"><span class="badge ${state}">${state}</span></td>
    ${range(site.temperatureC)}${range(site.relativeHumidityPct)}
    <td>${decimal(site.pm25UgM3.mean)}</td>
    ${marked(decimal(highest), highest > threshold)}${marked(String(above), above > 0)}
    <td>${site.batteryVoltage.latest.toFixed(2)}</td>
    <td>${percent(site.completeness)}</td>
  </tr> `;
}

function range({ min, mean, max }: Range): Html {
  return html`<td>${decimal(min)}</td>
    <td>${decimal(mean)}</td>
    <td>${decimal(max)}</td>`;
}

function figure(plot: Plot): Html {
  return html`<section id="${anchor(plot)}" aria-labelledby="${anchor(plot)}-heading">
    <h2 id="${anchor(plot)}-heading" class="unseen">${new Html(plot.title)}</h2>
    <figure>
      <div tabindex="0" role="group" aria-label="${new Html(plot.title)}, plot">${new Html(plot.svg)}</div>
      <figcaption>
        ${new Html(plot.description)} <a href="plots/${plot.name}">Open the plot by itself</a>.
      </figcaption>
    </figure>
  </section> `;
}

function thresholdNote({ pm25ThresholdUgM3: drawn }: Metrics, { pm25ThresholdUgM3: used }: Status): Html {
  if (drawn === used) return html``;
  return html`<p class="note">
    The plot of PM2.5 shows a threshold of ${drawn} µg/m³; the alerts of this report use ${used} µg/m³.
  </p> `;
}

function footer({ window }: Metrics, plots: readonly Plot[]): Html {
  return html`<footer id="data">
    <h2>Data</h2>
    <p>
      For programs: <a href="status.json">status.json</a> (state and alerts) and
      <a href="metrics.json">metrics.json</a> (all figures of this report). Plots:
      ${new Html(plots.map(({ name }) => html`<a href="plots/${name}">${name}</a>`.markup).join(", "))}.
    </p>
    <p>
      An alert is an hour, or several in a row, in which the mean of all PM2.5 readings of a site is above the
      threshold. Data completeness is the share of the readings that the instruments should have delivered in
      these ${window.hours} hours; readings that failed validation count as missing.
      <a href="#summary">Back to the summary</a>
    </p>
  </footer>`;
}

/** A table that scrolls sideways where the screen is narrow, also by keyboard. */
function sheet(label: string, table: Html): Html {
  return html`<div class="sheet" role="region" tabindex="0" aria-label="${label}">${table}</div>`;
}

function anchor({ name }: Plot): string {
  return `plot-${name.replace(/\.svg$/, "").replaceAll(".", "-")}`;
}

function highestHour({ hourlyPm25UgM3 }: SiteMetrics): number {
  return hourlyPm25UgM3.reduce((highest, { mean }) => Math.max(highest, mean), 0);
}

/** One decimal, with a true minus sign, and never a negative zero. */
function decimal(value: number): string {
  const text = Math.abs(value).toFixed(1);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}

/** Rounded down, so that only complete data are 100 %. */
function percent(share: number): string {
  return `${(Math.floor(share * 1000) / 10).toFixed(1)} %`;
}

function day(time: string | number): string {
  return new Date(time).toLocaleDateString("en-GB", {
    day: "numeric",
    month: "long",
    year: "numeric",
    timeZone: "UTC",
  });
}

function clock(time: string): string {
  return new Date(time).toISOString().slice(11, 16);
}

/** The end of a day is 24:00, not the next day's 00:00. */
function endClock(time: string): string {
  return clock(time) === "00:00" ? "24:00" : clock(time);
}

function span({ from, to }: Metrics["window"]): string {
  const [first, last] = [day(from), day(Date.parse(to) - 1)];
  return first === last ? first : `${first} to ${last}`;
}

function spanWithTimes({ from, to }: Metrics["window"]): string {
  const [first, last] = [day(from), day(Date.parse(to) - 1)];
  return first === last
    ? `${first}, ${clock(from)} to ${endClock(to)} UTC`
    : `${first}, ${clock(from)} to ${last}, ${endClock(to)} UTC`;
}

function list(names: readonly string[]): string {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
