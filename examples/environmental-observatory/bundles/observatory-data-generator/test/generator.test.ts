import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { handler, type Result } from "../src/index.ts";
import { HEADER } from "../src/instrument.ts";
import { parseParameters } from "../src/parameters.ts";
import { Weather } from "../src/weather.ts";

type Files = Record<string, string>;

async function generate(
  parameters: Record<string, unknown>,
  signal = new AbortController().signal,
): Promise<[Result, Files]> {
  const outputDir = await mkdtemp(join(tmpdir(), "generator-"));
  try {
    const logger = { info: () => {} };
    const result = await handler({ parameters, outputDir, signal, logger, progress: () => {} });
    const inbox = join(outputDir, "inbox");
    const files: Files = {};
    for (const name of (await readdir(inbox)).sort()) files[name] = await readFile(join(inbox, name), "utf8");
    return [result, files];
  } finally {
    await rm(outputDir, { recursive: true });
  }
}

test("equal seeds give equal files, other seeds other files", async () => {
  const [, first] = await generate({ seed: 7, hours: 3 });
  const [, second] = await generate({ seed: 7, hours: 3 });
  const [, other] = await generate({ seed: 8, hours: 3 });
  assert.deepEqual(first, second);
  assert.deepEqual(Object.keys(first), Object.keys(other));
  assert.notDeepEqual(first, other);
});

test("an hour is the same alone as within a day", async () => {
  const [, day] = await generate({ hours: 24 });
  const [, hour] = await generate({ hours: 1, start: "2026-03-04T17:00:00Z" });
  assert.equal(Object.keys(hour).length, 6);
  for (const [name, text] of Object.entries(hour)) assert.equal(text, day[name]);
});

test("a file holds six rows at ten-minute steps under the header", async () => {
  const [result, files] = await generate({ sites: ["north-pier"], instrumentsPerSite: 1, faultRate: 0 });
  assert.deepEqual(Object.keys(files), ["instrument_north-pier-01_202603040000.csv"]);
  const lines = files["instrument_north-pier-01_202603040000.csv"]!.trimEnd().split("\n");
  assert.equal(lines[0], HEADER);
  assert.deepEqual(
    lines.slice(1).map((line) => line.split(",")[0]),
    ["00", "10", "20", "30", "40", "50"].map((minute) => `2026-03-04T00:${minute}:00Z`),
  );
  for (const line of lines.slice(1)) {
    assert.match(line, /^\S+Z,north-pier-01,north-pier,-?\d+\.\d\d,\d+\.\d,\d+\.\d,\d+\.\d\d$/);
  }
  assert.deepEqual([result.files, result.rows, result.faults], [1, 6, 0]);
  assert.deepEqual([result.from, result.to], ["2026-03-04T00:00:00.000Z", "2026-03-04T01:00:00.000Z"]);
});

test("the share of faults follows faultRate", async () => {
  const [none] = await generate({ hours: 24, faultRate: 0 });
  const [some] = await generate({ hours: 24 });
  const [many] = await generate({ hours: 24, faultRate: 0.3 });
  assert.equal(none.faults, 0);
  assert.equal(none.rows, 864);
  assert.ok(some.faults > 5 && some.faults < 40, `${some.faults} faults`);
  assert.ok(many.faults > 200 && many.faults < 320, `${many.faults} faults`);
});

for (const seed of [1, 2, 3, 42, "pilot"]) {
  test(`seed ${seed}: on each day exactly one site exceeds 35 µg/m³, and humidity falls as the day warms`, () => {
    const { sites, start } = parseParameters({ seed });
    const weather = new Weather(String(seed), sites);
    for (let day = 0; day < 10; day += 1) {
      const exceeding = sites.filter((site) => {
        const times = Array.from({ length: 144 }, (_, step) => start + day * 86_400_000 + step * 600_000);
        const readings = times.map((time) => weather.read(site, `${site.name}-01`, time));
        assert.ok(readings.every((reading) => reading.temperatureC > -25 && reading.temperatureC < 40));
        assert.ok(
          correlation(
            readings.map((r) => r.temperatureC),
            readings.map((r) => r.relativeHumidityPct),
          ) < -0.6,
        );
        const hourly = Array.from({ length: 24 }, (_, hour) =>
          mean(readings.slice(hour * 6, hour * 6 + 6).map((r) => r.pm25UgM3)),
        );
        return hourly.some((value) => value > 35);
      });
      assert.equal(exceeding.length, 1, `day ${day}: ${exceeding.map((site) => site.name).join(", ")}`);
    }
  });
}

test("parameters that make no sense are named", () => {
  const refused: [Record<string, unknown>, RegExp][] = [
    [{ start: "2026-03-04" }, /parameter start: "2026-03-04" is not a full hour/],
    [{ start: "2026-13-04T00:00:00Z" }, /parameter start/],
    [{ hours: 0 }, /parameter hours: 0 is not a number from 1 to 744/],
    [{ hours: 1.5 }, /parameter hours: 1.5 is not a whole number/],
    [{ sites: [] }, /parameter sites/],
    [{ sites: ["../escape"] }, /parameter sites\[0\]: "..\/escape" is not a site name/],
    [{ sites: ["a", { name: "a" }] }, /a is listed twice/],
    [{ sites: [{ name: "a", altitude: 3 }] }, /unknown key in sites\[0\]: altitude/],
    [{ rowsPerFile: 7 }, /divisor of 60/],
    [{ faultrate: 0.1 }, /unknown parameter faultrate; known are/],
    [{ hours: 744, instrumentsPerSite: 20 }, /makes 44640 files/],
  ];
  for (const [parameters, message] of refused) assert.throws(() => parseParameters(parameters), message);
});

test("a cancelled run stops", async () => {
  await assert.rejects(generate({ hours: 5 }, AbortSignal.abort()), { name: "AbortError" });
});

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function correlation(left: readonly number[], right: readonly number[]): number {
  const [meanLeft, meanRight] = [mean(left), mean(right)];
  const products = left.map((value, index) => (value - meanLeft) * (right[index]! - meanRight));
  const spread = (values: readonly number[], centre: number): number =>
    Math.sqrt(mean(values.map((value) => (value - centre) ** 2)));
  return mean(products) / (spread(left, meanLeft) * spread(right, meanRight));
}
