/** What this bundle reads of a metrics.json. Times are ISO 8601 in UTC. */
export interface Metrics {
  readonly window: { readonly from: string; readonly to: string; readonly hours: number };
  /** The threshold that the plots show. */
  readonly pm25ThresholdUgM3: number;
  readonly sites: readonly SiteMetrics[];
}

export interface Range {
  readonly min: number;
  readonly mean: number;
  readonly max: number;
}

export interface SiteMetrics {
  readonly site: string;
  readonly instruments: number;
  readonly readings: number;
  readonly expectedReadings: number;
  /** 0 to 1. */
  readonly completeness: number;
  readonly temperatureC: Range;
  readonly relativeHumidityPct: Range;
  readonly pm25UgM3: Range;
  readonly batteryVoltage: { readonly min: number; readonly latest: number };
  readonly hourlyPm25UgM3: readonly { readonly hour: string; readonly mean: number }[];
}

/** Throws an Error that names the first thing that is missing or of another type. */
export function parseMetrics(text: string): Metrics {
  const root = object(parseJson(text), "metrics");
  const window = object(root["window"], "window");
  const sites = list(root["sites"], "sites").map((item, index) =>
    parseSite(object(item, `sites[${index}]`), `sites[${index}]`),
  );
  if (sites.length === 0) throw new Error("input metrics: sites is empty; there is nothing to report");
  return {
    window: {
      from: time(window["from"], "window.from"),
      to: time(window["to"], "window.to"),
      hours: number(window["hours"], "window.hours"),
    },
    pm25ThresholdUgM3: number(root["pm25ThresholdUgM3"], "pm25ThresholdUgM3"),
    sites,
  };
}

function parseSite(item: Record<string, unknown>, at: string): SiteMetrics {
  const battery = object(item["batteryVoltage"], `${at}.batteryVoltage`);
  const count = (name: string): number => number(item[name], `${at}.${name}`);
  return {
    site: string(item["site"], `${at}.site`),
    instruments: count("instruments"),
    readings: count("readings"),
    expectedReadings: count("expectedReadings"),
    completeness: count("completeness"),
    temperatureC: range(item["temperatureC"], `${at}.temperatureC`),
    relativeHumidityPct: range(item["relativeHumidityPct"], `${at}.relativeHumidityPct`),
    pm25UgM3: range(item["pm25UgM3"], `${at}.pm25UgM3`),
    batteryVoltage: {
      min: number(battery["min"], `${at}.batteryVoltage.min`),
      latest: number(battery["latest"], `${at}.batteryVoltage.latest`),
    },
    hourlyPm25UgM3: list(item["hourlyPm25UgM3"], `${at}.hourlyPm25UgM3`).map((entry, index) => {
      const here = `${at}.hourlyPm25UgM3[${index}]`;
      const { hour, mean } = object(entry, here);
      return { hour: time(hour, `${here}.hour`), mean: number(mean, `${here}.mean`) };
    }),
  };
}

function range(value: unknown, at: string): Range {
  const { min, mean, max } = object(value, at);
  return { min: number(min, `${at}.min`), mean: number(mean, `${at}.mean`), max: number(max, `${at}.max`) };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error("input metrics is not JSON; expected the metrics.json of a visualization", {
      cause: error,
    });
  }
}

function object(value: unknown, at: string): Record<string, unknown> {
  if (typeof value === "object" && value !== null && !Array.isArray(value))
    return value as Record<string, unknown>;
  throw unexpected(at, "an object");
}

function list(value: unknown, at: string): unknown[] {
  if (Array.isArray(value)) return value;
  throw unexpected(at, "a list");
}

function number(value: unknown, at: string): number {
  if (typeof value === "number") return value;
  throw unexpected(at, "a number");
}

function string(value: unknown, at: string): string {
  if (typeof value === "string") return value;
  throw unexpected(at, "a text");
}

function time(value: unknown, at: string): string {
  if (typeof value === "string" && !Number.isNaN(Date.parse(value))) return value;
  throw unexpected(at, "a time");
}

function unexpected(at: string, wanted: string): Error {
  return new Error(`input metrics: ${at} is not ${wanted}; expected the metrics.json of a visualization`);
}
