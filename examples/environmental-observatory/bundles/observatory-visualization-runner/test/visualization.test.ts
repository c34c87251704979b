import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { DuckDBInstance } from "@duckdb/node-api";
import { HEIGHT, lineChart, WIDTH } from "../src/chart.ts";
import { handler, type Result } from "../src/index.ts";
import { signed, spread } from "../src/labels.ts";
import { findAlerts, type Metrics } from "../src/metrics.ts";
import { parseParameters } from "../src/parameters.ts";
import type { Bucket } from "../src/warehouse.ts";
import { parseXml, textOf, walk, type XmlElement } from "./xml.ts";

const HOUR = 3_600_000;
const DAY = Date.UTC(2026, 2, 4);

let root = "";
let warehouse = "";

/** A day and a bit: pier rises above 35 µg/m³ from 18:00 to 21:00, dune never does and has lost an hour of an instrument. */
before(async () => {
  root = await mkdtemp(join(tmpdir(), "visualization-"));
  warehouse = join(root, "warehouse.duckdb");
  await database(
    warehouse,
    `
    INSERT INTO readings
    SELECT site, site || '-0' || instrument, observed_at,
      4 + 5 * sin((hour(observed_at) - 9) / 24.0 * 2 * pi()) + 0.1 * instrument, 70,
      CASE WHEN site = 'pier' AND hour(observed_at) BETWEEN 18 AND 20 AND day(observed_at) = 4 THEN 34 + hour(observed_at) - 16 ELSE 8 END,
      12.5 - epoch(observed_at - TIMESTAMP '2026-03-03 20:00:00') / 1e6
    FROM (SELECT unnest(['pier', 'dune']) AS site), (SELECT unnest([1, 2]) AS instrument),
      (SELECT unnest(generate_series(TIMESTAMP '2026-03-03 20:00:00', TIMESTAMP '2026-03-04 23:50:00', INTERVAL 10 MINUTE)) AS observed_at)
    WHERE NOT (site = 'dune' AND instrument = 2 AND observed_at >= TIMESTAMP '2026-03-04 05:00:00' AND observed_at < TIMESTAMP '2026-03-04 06:00:00')`,
  );
});
after(async () => {
  await rm(root, { recursive: true });
});

async function database(path: string, sql: string): Promise<void> {
  const instance = await DuckDBInstance.create(path);
  const connection = await instance.connect();
  await connection.run(`
    CREATE TABLE readings (site VARCHAR, instrument_id VARCHAR, observed_at TIMESTAMP, temperature_c DOUBLE,
      relative_humidity_pct DOUBLE, pm2_5_ug_m3 DOUBLE, battery_voltage DOUBLE)`);
  await connection.run(sql);
  connection.closeSync();
  instance.closeSync();
}

async function visualize(
  parameters: Record<string, unknown> = {},
  { input = warehouse, signal = new AbortController().signal } = {},
): Promise<{ result: Result; metrics: Metrics; plots: Record<string, string> }> {
  const outputDir = await mkdtemp(join(root, "outputs-"));
  await mkdir(outputDir, { recursive: true });
  const logger = { info: () => {} };
  const result = await handler({
    parameters,
    inputs: { warehouse: input },
    outputDir,
    signal,
    logger,
    progress: () => {},
  });
  const plots: Record<string, string> = {};
  for (const name of await readdir(join(outputDir, "plots")))
    plots[name] = await readFile(join(outputDir, "plots", name), "utf8");
  return {
    result,
    metrics: JSON.parse(await readFile(join(outputDir, "metrics.json"), "utf8")) as Metrics,
    plots,
  };
}

function texts(svg: XmlElement): string[] {
  return [...walk(svg)].filter((node) => node.name === "text").map(textOf);
}

function inGroup(svg: XmlElement, name: string): XmlElement[] {
  return [...walk(svg)]
    .filter((node) => node.attributes["class"] === name)
    .flatMap((group) => [...walk(group)]);
}

test("three plots are well-formed, with title, axes, units, grid and a legend", async () => {
  const { plots } = await visualize();
  const expected: Record<string, [title: string, axis: string, unit: string]> = {
    "temperature.svg": ["Air temperature", "Temperature (°C)", "°C"],
    "pm25-by-site.svg": ["Fine particles (PM2.5) by site", "PM2.5 (µg/m³)", "µg/m³"],
    "humidity.svg": ["Relative humidity", "Relative humidity (%)", "%"],
  };
  assert.deepEqual(Object.keys(plots).sort(), Object.keys(expected).sort());
  for (const [name, [title, axis, unit]] of Object.entries(expected)) {
    const svg = parseXml(plots[name]!);
    assert.deepEqual(
      [svg.name, svg.attributes["viewBox"], svg.attributes["role"]],
      ["svg", `0 0 ${WIDTH} ${HEIGHT}`, "img"],
    );
    const written = texts(svg);
    for (const text of [title, axis, "Time (UTC)", "pier", "dune"])
      assert.ok(written.includes(text), `${name}: ${text}`);
    assert.ok(
      written.some((text) => text.endsWith(unit)),
      `${name}: ${unit}`,
    );
    for (const group of ["plot-value-axis", "plot-time-axis"]) {
      const nodes = inGroup(svg, group);
      assert.ok(nodes.filter((node) => node.name === "text").length >= 4, `${name}: ticks of ${group}`);
      assert.ok(
        nodes.filter((node) => node.attributes["class"] === "plot-grid-line").length >= 3,
        `${name}: grid of ${group}`,
      );
    }
    assert.ok(
      [...walk(svg)].some((node) => node.name === "rect" && node.attributes["width"] === String(WIDTH)),
      `${name}: background`,
    );
    assert.ok(!/NaN|undefined|Infinity/.test(plots[name]!), name);
  }
});

test("the threshold line is where the axis says", async () => {
  const { plots } = await visualize({ pm25Threshold: 30 });
  const svg = parseXml(plots["pm25-by-site.svg"]!);
  assert.ok(texts(svg).includes("Threshold 30 µg/m³"));
  assert.ok(texts(svg).includes("38.0 µg/m³, 20:00–21:00"));
  const line = inGroup(svg, "plot-threshold").find((node) => node.name === "line")!;
  const tick = inGroup(svg, "plot-value-axis").find((node) => node.name === "text" && textOf(node) === "30")!;
  assert.equal(line.attributes["y1"], tick.attributes["y"]);
  assert.equal(line.attributes["y1"], line.attributes["y2"]);
});

test("every coordinate of a line is within the frame", async () => {
  const { plots } = await visualize({ hours: 3 });
  for (const [name, plot] of Object.entries(plots)) {
    for (const node of inGroup(parseXml(plot), "plot-series")) {
      if (node.name !== "path" || node.attributes["transform"]) continue;
      const numbers = [...node.attributes["d"]!.matchAll(/(-?[\d.]+),(-?[\d.]+)/g)];
      for (const [pair, x, y] of numbers)
        assert.ok(
          Number(x) >= 0 && Number(x) <= WIDTH && Number(y) >= 0 && Number(y) <= HEIGHT,
          `${name}: ${pair}`,
        );
    }
  }
});

test("metrics say what the warehouse holds", async () => {
  const { metrics, result } = await visualize();
  assert.deepEqual(metrics.window, {
    from: "2026-03-04T00:00:00.000Z",
    to: "2026-03-05T00:00:00.000Z",
    hours: 24,
  });
  const [dune, pier] = metrics.sites;
  assert.deepEqual(
    [dune!.site, dune!.instruments, dune!.readings, dune!.expectedReadings, dune!.completeness],
    ["dune", 2, 282, 288, 0.9792],
  );
  assert.deepEqual(
    [pier!.site, pier!.readings, pier!.completeness, pier!.hoursAboveThreshold, pier!.maxHourlyPm25UgM3],
    ["pier", 288, 1, 3, 38],
  );
  assert.deepEqual(pier!.relativeHumidityPct, { min: 70, mean: 70, max: 70 });
  assert.deepEqual([pier!.pm25UgM3.min, pier!.pm25UgM3.max], [8, 38]);
  assert.equal(pier!.hourlyPm25UgM3.length, 24);
  assert.ok(pier!.batteryVoltage.latest === pier!.batteryVoltage.min);
  assert.deepEqual(metrics.alerts, [
    {
      site: "pier",
      from: "2026-03-04T18:00:00.000Z",
      to: "2026-03-04T21:00:00.000Z",
      hours: 3,
      peakUgM3: 38,
      peakHour: "2026-03-04T20:00:00.000Z",
      thresholdUgM3: 35,
    },
  ]);
  assert.deepEqual(result.alerts, metrics.alerts);
  assert.equal(result.readings, 570);
});

test("the window can be moved, and begins no earlier than the data", async () => {
  const { metrics } = await visualize({ until: "2026-03-04T06:00:00Z", hours: 48 });
  assert.deepEqual(metrics.window, {
    from: "2026-03-03T20:00:00.000Z",
    to: "2026-03-04T06:00:00.000Z",
    hours: 10,
  });
  assert.deepEqual(metrics.alerts, []);
  await assert.rejects(
    visualize({ until: "2025-01-01T00:00:00Z" }),
    /no readings from 2024-12-31T00:00:00.000Z to 2025-01-01T00:00:00.000Z/,
  );
});

test("a warehouse with a single reading can be drawn", async () => {
  const path = join(root, "single.duckdb");
  await database(
    path,
    "INSERT INTO readings VALUES ('pier', 'pier-01', '2026-03-04 10:20:00', 3, 60, 90, 12)",
  );
  const { metrics, plots } = await visualize({}, { input: path });
  assert.equal(metrics.alerts.length, 1);
  for (const plot of Object.values(plots))
    assert.ok(!/NaN|undefined|Infinity/.test(textOf(parseXml(plot)) + plot));
});

test("an empty warehouse is refused", async () => {
  const path = join(root, "empty.duckdb");
  await database(path, "SELECT 1");
  await assert.rejects(visualize({}, { input: path }), /the warehouse has no readings/);
});

test("only a mean above the threshold alerts, and a gap ends an alert", () => {
  const hourly = [34.99, 35, 35.01, 40, 20, 36, undefined, 37].flatMap((mean, hour) =>
    mean === undefined ? [] : [bucket("b", hour, mean)],
  );
  const alerts = findAlerts([...hourly, bucket("a", 3, 99)], 35);
  assert.deepEqual(
    alerts.map(({ site, from, hours, peakUgM3 }) => [site, from.slice(11, 13), hours, peakUgM3]),
    [
      ["b", "02", 2, 40],
      ["a", "03", 1, 99],
      ["b", "05", 1, 36],
      ["b", "07", 1, 37],
    ],
  );
});

function bucket(site: string, hour: number, mean: number): Bucket {
  const range = { min: mean, mean, max: mean };
  return {
    site,
    start: DAY + hour * HOUR,
    readings: 12,
    temperatureC: range,
    relativeHumidityPct: range,
    pm25UgM3: range,
  };
}

test("names are escaped, and a missing value interrupts the line", () => {
  const name = `<script>"&'\u0007`;
  const plot = lineChart({
    id: "x",
    title: name,
    subtitle: "",
    description: name,
    axisTitle: "a < b",
    unit: "°C",
    window: { from: DAY, to: DAY + 4 * HOUR },
    domain: [0, 10],
    series: [
      { name, points: [1, 2, undefined, 3, 4].map((value, hour) => ({ time: DAY + hour * HOUR, value })) },
    ],
  });
  const svg = parseXml(plot);
  assert.ok(texts(svg).includes(`<script>"&'`));
  const path = inGroup(svg, "plot-series").find((node) => node.name === "path")!;
  assert.equal(path.attributes["d"]!.match(/M/g)!.length, 2);
});

test("labels keep their distance and stay near their lines", () => {
  assert.deepEqual(spread([100, 200], 30, 0, 300), [100, 200]);
  assert.deepEqual(spread([110, 100], 30, 0, 300), [120, 90]);
  assert.deepEqual(spread([300, 300, 10], 30, 0, 300), [270, 300, 10]);
  assert.deepEqual(spread([0, 0, 0], 30, 0, 40), [0, 20, 40]);
  assert.deepEqual(spread([50], 30, 0, 40), [40]);
  assert.deepEqual(spread([], 30, 0, 40), []);
});

test("numbers have a true minus sign and no negative zero", () => {
  assert.deepEqual([-1.25, -0.04, 0, 8.1].map(signed), ["\u22121.3", "0.0", "0.0", "8.1"]);
});

test("wrong parameters, a missing input and a cancelled run are refused", async () => {
  assert.throws(() => parseParameters({ pm25Threshold: 0 }), /parameter pm25Threshold: 0 is not/);
  assert.throws(() => parseParameters({ hours: 800 }), /parameter hours: 800 is not/);
  assert.throws(
    () => parseParameters({ until: "2026-03-04T10:30:00Z" }),
    /parameter until: .* is not a full hour/,
  );
  assert.throws(() => parseParameters({ treshold: 1 }), /unknown parameter treshold/);
  await assert.rejects(visualize({}, { signal: AbortSignal.abort() }), { name: "AbortError" });
  const context = {
    parameters: {},
    inputs: {},
    outputDir: root,
    signal: new AbortController().signal,
    logger: { info: () => {} },
    progress: () => {},
  };
  await assert.rejects(handler(context), /input warehouse is missing/);
});
