import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { handler, type Result } from "../src/index.ts";
import { parseMetrics } from "../src/metrics.ts";
import { parseParameters } from "../src/parameters.ts";
import { parsePlot } from "../src/plots.ts";
import { assess } from "../src/status.ts";

let root = "";

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "publisher-"));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

type Hourly = (number | undefined)[];

/** The metrics of a day that begins with these hourly means of PM2.5 by site; undefined is an hour without readings. */
function metrics(sites: Record<string, Hourly>, pm25ThresholdUgM3 = 35): Record<string, unknown> {
  return {
    window: { from: "2026-03-04T00:00:00.000Z", to: "2026-03-05T00:00:00.000Z", hours: 24 },
    pm25ThresholdUgM3,
    sites: Object.entries(sites).map(([site, hourly]) => ({
      site,
      instruments: 2,
      readings: 282,
      expectedReadings: 288,
      completeness: 0.9792,
      temperatureC: { min: -3.28, mean: 1.47, max: 7.93 },
      relativeHumidityPct: { min: 48.7, mean: 72.16, max: 89.5 },
      pm25UgM3: { min: 6.4, mean: 12.21, max: 62.2 },
      batteryVoltage: { min: 12.59, latest: 12.71 },
      hourlyPm25UgM3: hourly.flatMap((mean, hour) =>
        mean === undefined
          ? []
          : [{ hour: new Date(Date.UTC(2026, 2, 4, hour)).toISOString(), mean, readings: 12 }],
      ),
    })),
    alerts: [],
  };
}

function svg(id: string, title: string): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 4"><title id="${id}-title">${title}</title><desc id="${id}-description">About ${title}</desc><rect width="9" height="4"/></svg>\n`;
}

const PLOTS = {
  "humidity.svg": svg("humidity", "Humidity &amp; air"),
  "pm25-by-site.svg": svg("pm25-by-site", "Particles"),
  "temperature.svg": svg("temperature", "Temperature"),
};

async function publish(
  input: unknown,
  {
    plots = PLOTS as Record<string, string>,
    parameters = {},
    signal = new AbortController().signal,
  }: { plots?: Record<string, string>; parameters?: Record<string, unknown>; signal?: AbortSignal } = {},
): Promise<{ result: Result; read: (path: string) => Promise<string>; warnings: string[] }> {
  const [outputDir, directory, path] = [
    join(root, "outputs"),
    join(root, "plots"),
    join(root, "metrics.json"),
  ];
  await rm(outputDir, { recursive: true, force: true });
  for (const folder of [outputDir, directory]) await mkdir(folder, { recursive: true });
  for (const [name, text] of Object.entries(plots)) await writeFile(join(directory, name), text);
  await writeFile(path, typeof input === "string" ? input : JSON.stringify(input));
  const warnings: string[] = [];
  const logger = { info: () => {}, warn: (message: string) => warnings.push(message) };
  const inputs = { plots: directory, metrics: path };
  const result = await handler({ parameters, inputs, outputDir, signal, logger, progress: () => {} });
  return { result, read: (name) => readFile(join(outputDir, name), "utf8"), warnings };
}

test("a site above the threshold puts the status into alert", async () => {
  const { result, read } = await publish(metrics({ quay: [8, 36, 58.126, 40, 9], heath: [5, 35] }));
  const alert = {
    site: "quay",
    from: "2026-03-04T01:00:00.000Z",
    to: "2026-03-04T04:00:00.000Z",
    hours: 3,
    peakUgM3: 58.13,
    peakHour: "2026-03-04T02:00:00.000Z",
    thresholdUgM3: 35,
  };
  assert.deepEqual(JSON.parse(await read("status.json")), {
    state: "alert",
    window: { from: "2026-03-04T00:00:00.000Z", to: "2026-03-05T00:00:00.000Z", hours: 24 },
    pm25ThresholdUgM3: 35,
    alerts: [alert],
    sites: [
      { site: "quay", state: "alert", completeness: 0.9792 },
      { site: "heath", state: "ok", completeness: 0.9792 },
    ],
  });
  assert.deepEqual([result.state, result.alerts, result.plots], ["alert", [alert], 3]);
  const page = await read("report.html");
  assert.match(page, /PM2\.5 rose above 35 µg\/m³ at quay\./);
  assert.match(page, /<td class="text">01:00 – 04:00<\/td>\s*<td>3<\/td>/);
});

test("exactly at the threshold is still in order", async () => {
  const { result, read } = await publish(metrics({ quay: [35, 35, 34.999] }));
  assert.deepEqual([result.state, result.alerts], ["ok", []]);
  assert.match(await read("report.html"), /PM2\.5 stayed at or below 35 µg\/m³ at every site\./);
});

test("the threshold can be another one than the plots show, and the report says so", async () => {
  const { result, read, warnings } = await publish(metrics({ quay: [20, 26, 24] }), {
    parameters: { pm25Threshold: 25 },
  });
  assert.deepEqual([result.state, result.alerts.length, result.alerts[0]!.thresholdUgM3], ["alert", 1, 25]);
  assert.match(
    await read("report.html"),
    /The plot of PM2\.5 shows a threshold of 35 µg\/m³; the alerts of this report use 25 µg\/m³\./,
  );
  assert.ok(warnings.includes("the plots show another threshold than the alerts use"));
});

test("a gap ends an alert, and alerts are in the order of time", () => {
  const { alerts } = assess(
    parseMetrics(JSON.stringify(metrics({ b: [1, 36, undefined, 37], a: [1, 1, 50, 51] }))),
    35,
  );
  assert.deepEqual(
    alerts.map(({ site, from, hours }) => [site, from.slice(11, 13), hours]),
    [
      ["b", "01", 1],
      ["a", "02", 2],
      ["b", "03", 1],
    ],
  );
});

test("every link of the report leads somewhere, and nothing is loaded from elsewhere", async () => {
  const { read } = await publish(metrics({ quay: [8, 36] }));
  const page = await read("report.html");
  const ids = [...page.matchAll(/\sid="([^"]+)"/g)].map(([, id]) => id!);
  assert.equal(new Set(ids).size, ids.length, "an id twice");
  const links = [...page.matchAll(/<a [^>]*href="([^"]+)"/g)].map(([, href]) => href!);
  assert.ok(
    links.includes("status.json") &&
      links.includes("plots/pm25-by-site.svg") &&
      links.includes("#plot-pm25-by-site"),
  );
  for (const link of links) {
    if (link.startsWith("#")) assert.ok(ids.includes(link.slice(1)), link);
    else assert.ok((await read(link)).length > 0, link);
  }
  for (const [, references] of page.matchAll(/aria-labelledby="([^"]+)"/g)) {
    for (const id of references!.split(" ")) assert.ok(ids.includes(id), id);
  }
  assert.doesNotMatch(page, /\ssrc=|<script|@import/);
});

test("plots are inlined in the order of their weight, each with a caption", async () => {
  const { read } = await publish(metrics({ quay: [8] }), {
    plots: { ...PLOTS, "battery.svg": svg("battery", "Battery") },
  });
  const page = await read("report.html");
  const places = ["pm25-by-site", "temperature", "humidity", "battery"].map((id) =>
    page.indexOf(`<title id="${id}-title">`),
  );
  assert.ok(
    places.every((place, index) => place > (places[index - 1] ?? 0)),
    String(places),
  );
  assert.equal(page.match(/<figcaption>/g)!.length, 4);
  assert.match(page, /<figcaption>\s*About Humidity &amp; air /);
  assert.equal(await read("plots/humidity.svg"), PLOTS["humidity.svg"]);
});

test("tables have headers with a scope", async () => {
  const page = await (await publish(metrics({ quay: [8, 36] }))).read("report.html");
  const headers = page.match(/<th\b[^>]*>/g)!;
  assert.ok(headers.length >= 20);
  for (const header of headers) assert.match(header, /scope="(col|row|colgroup)"/);
  assert.equal(page.match(/<caption>/g)!.length, 2);
});

test("names and titles are escaped", async () => {
  const { read } = await publish(metrics({ '<b>"quay"&\'': [8, 36] }), {
    parameters: { title: "</title><script>alert(1)</script>" },
  });
  const page = await read("report.html");
  assert.doesNotMatch(page, /<script|<b>"quay"/);
  assert.match(page, /&lt;b&gt;&quot;quay&quot;&amp;&#39;/);
});

test("equal inputs give an equal report", async () => {
  const input = metrics({ quay: [8, 36] });
  const first = await (await publish(input)).read("report.html");
  assert.equal(await (await publish(input)).read("report.html"), first);
});

const UNSAFE: [what: string, inner: string][] = [
  ["a script", "<script>alert(1)</script>"],
  ["an event handler", '<rect onload="alert(1)"/>'],
  ["foreign markup", "<foreignObject><p/></foreignObject>"],
  ["a link", '<a href="javascript:alert(1)"><text>x</text></a>'],
  ["an image from elsewhere", '<image href="https://example.org/x.png"/>'],
  ["a style that loads", '<style>@import "x.css";</style>'],
  ["a reference out of the document", '<rect fill="url(x.svg#a)"/>'],
  ["a filter that loads", '<feImage xlink:href="https://example.org/x.svg"/>'],
  ["an entity", "<!ENTITY x 'y'>"],
];

for (const [what, inner] of UNSAFE) {
  test(`a plot with ${what} is refused`, () => {
    const text = `<svg xmlns="http://www.w3.org/2000/svg">${inner}</svg>`;
    assert.throws(
      () => parsePlot("x.svg", text),
      /input plots: x\.svg holds .*, which a report must not contain/,
    );
  });
}

test("a plot's own gradients and clips are fine, also after an XML declaration", () => {
  const text = `<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><title>Data: a &amp; b</title><g clip-path="url(#a)"/></svg>`;
  assert.ok(parsePlot("x.svg", text).svg.startsWith("<svg"));
  assert.throws(() => parsePlot("x.svg", "<html></html>"), /x\.svg is not an SVG document/);
  assert.throws(() => parsePlot(`a" onclick=.svg`, text), /no plain file name/);
});

test("inputs and parameters that make no sense are named", async () => {
  await assert.rejects(publish("not json"), /input metrics is not JSON/);
  await assert.rejects(publish({ ...metrics({}), sites: [] }), /sites is empty/);
  await assert.rejects(
    publish({ ...metrics({ a: [1] }), window: 3 }),
    /input metrics: window is not an object/,
  );
  await assert.rejects(publish(metrics({ quay: [1] }), { signal: AbortSignal.abort() }), {
    name: "AbortError",
  });
  await rm(join(root, "plots"), { recursive: true });
  await assert.rejects(publish(metrics({ quay: [1] }), { plots: {} }), /input plots has no \.svg file/);
  assert.throws(() => parseParameters({ pm25Threshold: -1 }), /parameter pm25Threshold: -1/);
  assert.throws(() => parseParameters({ title: " " }), /parameter title/);
  assert.throws(() => parseParameters({ threshold: 35 }), /unknown parameter threshold/);
});
