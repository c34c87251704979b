import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Context } from "./context.ts";
import { parseMetrics } from "./metrics.ts";
import { parseParameters } from "./parameters.ts";
import { readPlots } from "./plots.ts";
import { renderReport } from "./report.ts";
import { type Alert, assess, type Status } from "./status.ts";

export interface Result {
  readonly state: Status["state"];
  readonly alerts: readonly Alert[];
  readonly window: Status["window"];
  readonly report: string;
  readonly plots: number;
}

/** Writes `report.html` from the inputs `plots` and `metrics`, and beside it what it links to: `status.json`, `metrics.json`, `plots/`. */
export async function handler(context: Context): Promise<Result> {
  const { pm25Threshold, title } = parseParameters(context.parameters);
  const { plots: directory, metrics: path } = context.inputs;
  if (directory === undefined) throw new Error("input plots is missing; expected a directory of SVG plots");
  if (path === undefined)
    throw new Error("input metrics is missing; expected the metrics.json of a visualization");

  const text = await readFile(path, "utf8");
  const metrics = parseMetrics(text);
  const plots = await readPlots(directory);
  context.progress(0.3, `${plots.length} plots read`);
  context.signal.throwIfAborted();

  const threshold = pm25Threshold ?? metrics.pm25ThresholdUgM3;
  if (threshold !== metrics.pm25ThresholdUgM3) {
    context.logger.warn("the plots show another threshold than the alerts use", {
      shown: metrics.pm25ThresholdUgM3,
      used: threshold,
    });
  }
  const status = assess(metrics, threshold);
  const outputs = join(context.outputDir, "plots");
  await mkdir(outputs, { recursive: true });
  for (const { name, svg } of plots) {
    context.signal.throwIfAborted();
    await writeFile(join(outputs, name), `${svg}\n`);
  }
  await writeFile(join(context.outputDir, "metrics.json"), text);
  await writeFile(join(context.outputDir, "status.json"), `${JSON.stringify(status, null, 2)}\n`);
  await writeFile(join(context.outputDir, "report.html"), renderReport({ title, metrics, status, plots }));
  context.progress(1, "report written");

  const { state, alerts, window } = status;
  if (state === "alert")
    context.logger.warn("PM2.5 alert", {
      alerts: alerts.length,
      sites: [...new Set(alerts.map(({ site }) => site))],
    });
  context.logger.info("report published", { state, plots: plots.length, ...window });
  return { state, alerts, window, report: "report.html", plots: plots.length };
}
