import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Context } from "./context.ts";
import { computeMetrics, type Metrics } from "./metrics.ts";
import { type Parameters, parseParameters } from "./parameters.ts";
import { bucketWidth, humidityPlot, pm25Plot, temperaturePlot } from "./plots.ts";
import { Warehouse, type Window } from "./warehouse.ts";

const HOUR = 3_600_000;

export interface Result {
  readonly plots: readonly string[];
  readonly window: Metrics["window"];
  readonly sites: number;
  readonly readings: number;
  readonly alerts: Metrics["alerts"];
}

/** Draws `plots/*.svg` from the input `warehouse`, and writes the figures of the same window to `metrics.json`. */
export async function handler(context: Context): Promise<Result> {
  const parameters = parseParameters(context.parameters);
  const path = context.inputs["warehouse"];
  if (path === undefined)
    throw new Error("input warehouse is missing; expected the warehouse.duckdb that a load left");

  const warehouse = await Warehouse.open(path);
  try {
    const window = await chooseWindow(warehouse, parameters);
    const hours = (window.to - window.from) / HOUR;
    const width = bucketWidth(hours, parameters.readingsPerHour);
    const summaries = await warehouse.sites(window);
    if (summaries.length === 0) {
      throw new Error(
        `the warehouse has no readings from ${iso(window.from)} to ${iso(window.to)}; choose another parameter until`,
      );
    }
    const hourly = await warehouse.buckets(window, HOUR);
    const fine = await warehouse.buckets(window, width);
    context.progress(0.4, `${summaries.length} sites queried`);
    context.signal.throwIfAborted();

    const metrics = computeMetrics(window, summaries, hourly, parameters);
    const data = { window, sites: summaries.map(({ site }) => site), fine, width, hourly };
    const plots = {
      "plots/temperature.svg": () => temperaturePlot(data),
      "plots/pm25-by-site.svg": () => pm25Plot(data, parameters.pm25Threshold),
      "plots/humidity.svg": () => humidityPlot(data),
    };
    await mkdir(join(context.outputDir, "plots"), { recursive: true });
    for (const [index, [name, draw]] of Object.entries(plots).entries()) {
      context.signal.throwIfAborted();
      await writeFile(join(context.outputDir, name), draw());
      context.progress(0.4 + 0.2 * (index + 1), `${name} drawn`);
    }
    await writeFile(join(context.outputDir, "metrics.json"), `${JSON.stringify(metrics, null, 2)}\n`);

    const result: Result = {
      plots: Object.keys(plots),
      window: metrics.window,
      sites: summaries.length,
      readings: summaries.reduce((sum, { readings }) => sum + readings, 0),
      alerts: metrics.alerts,
    };
    context.logger.info("plots drawn", {
      ...result.window,
      sites: result.sites,
      readings: result.readings,
      alerts: result.alerts.length,
    });
    return result;
  } finally {
    warehouse.close();
  }
}

/** The last `hours` before `until`, but not from before the warehouse's first reading: a young warehouse has no gaps yet. */
async function chooseWindow(warehouse: Warehouse, { hours, until }: Parameters): Promise<Window> {
  const span = await warehouse.span();
  if (!span) throw new Error("the warehouse has no readings; load some first");
  const to = until ?? Math.floor(span.last / HOUR) * HOUR + HOUR;
  const first = Math.floor(span.first / HOUR) * HOUR;
  const from = to - hours * HOUR;
  return { from: first < to ? Math.max(from, first) : from, to };
}

function iso(time: number): string {
  return new Date(time).toISOString();
}
