import { max, min } from "d3-array";
import { utcFormat } from "d3-time-format";
import { lineChart, type Point, type Series } from "./chart.ts";
import { signed } from "./labels.ts";
import type { Bucket, Range, Window } from "./warehouse.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

type Quantity = "temperatureC" | "relativeHumidityPct" | "pm25UgM3";

export interface PlotData {
  readonly window: Window;
  readonly sites: readonly string[];
  /** Buckets of `width` milliseconds. */
  readonly fine: readonly Bucket[];
  readonly width: number;
  /** Buckets of an hour. */
  readonly hourly: readonly Bucket[];
}

/** Width of the buckets for lines that show every instrument reading for up to two days, and no more than some 400 points beyond. */
export function bucketWidth(hours: number, readingsPerHour: number): number {
  const finest = Math.max(10, Math.ceil(60 / readingsPerHour));
  const wanted = hours <= 48 ? finest : hours <= 336 ? 60 : 180;
  return Math.max(finest, wanted) * MINUTE;
}

export function temperaturePlot(data: PlotData): string {
  const series = data.sites.map((site) => fineSeries(data, site, "temperatureC"));
  const [low, high] = extent(series);
  return lineChart({
    id: "temperature",
    title: "Air temperature",
    subtitle: `Mean of each site's instruments every ${duration(data.width)}, with the range between them · ${span(data.window)}`,
    description: `Line chart of the air temperature in degrees Celsius at ${list(data.sites)}, ${span(data.window)}. It ranges from ${signed(low)} to ${signed(high)} °C.`,
    axisTitle: "Temperature (°C)",
    unit: "°C",
    window: data.window,
    domain: padded(low, high, 0.06, 2),
    series,
  });
}

export function humidityPlot(data: PlotData): string {
  const series = data.sites.map((site) => fineSeries(data, site, "relativeHumidityPct"));
  const [low, high] = extent(series);
  const [bottom, top] = padded(low, high, 0.08, 10);
  return lineChart({
    id: "humidity",
    title: "Relative humidity",
    subtitle: `Mean of each site's instruments every ${duration(data.width)}, with the range between them · ${span(data.window)}`,
    description: `Line chart of the relative humidity in percent at ${list(data.sites)}, ${span(data.window)}. It ranges from ${low.toFixed(0)} to ${high.toFixed(0)} %.`,
    axisTitle: "Relative humidity (%)",
    unit: "%",
    window: data.window,
    domain: [Math.max(0, bottom), Math.min(100, top)],
    series,
  });
}

export function pm25Plot(data: PlotData, threshold: number): string {
  const series = data.sites.map((site): Series => {
    const hourly = points(data.hourly, data.window, HOUR, site, "pm25UgM3").map(withoutRange);
    const detail = points(data.fine, data.window, data.width, site, "pm25UgM3").map(withoutRange);
    return data.width < HOUR ? { name: site, points: hourly, detail } : { name: site, points: hourly };
  });
  const [, high] = extent(series);
  const exceeding = series.filter(({ points: hours }) =>
    hours.some(({ value }) => value !== undefined && value > threshold),
  );
  const verdict =
    exceeding.length === 0
      ? "No site exceeds the threshold."
      : `The threshold is exceeded at ${list(exceeding.map(({ name }) => name))}.`;
  return lineChart({
    id: "pm25-by-site",
    title: "Fine particles (PM2.5) by site",
    subtitle: `Hourly mean of each site's instruments${data.width < HOUR ? `; faint: every ${duration(data.width)}` : ""} · ${span(data.window)}`,
    description: `Line chart of the hourly mean concentration of PM2.5 in micrograms per cubic metre at ${list(data.sites)}, ${span(data.window)}, with a threshold line at ${threshold} µg/m³. ${verdict}`,
    axisTitle: "PM2.5 (µg/m³)",
    unit: "µg/m³",
    window: data.window,
    domain: [0, Math.max(threshold * 1.2, high * 1.08)],
    series,
    markers: (data.window.to - data.window.from) / HOUR <= 48,
    threshold: { value: threshold, label: `Threshold ${threshold} µg/m³` },
  });
}

function fineSeries(data: PlotData, site: string, quantity: Quantity): Series {
  return { name: site, points: points(data.fine, data.window, data.width, site, quantity) };
}

/**
 * A point for each bucket of the window, also for those without readings. It stands in the middle of its bucket, except for
 * buckets of up to ten minutes: these hold one reading of each instrument, taken at their start.
 */
function points(
  buckets: readonly Bucket[],
  window: Window,
  width: number,
  site: string,
  quantity: Quantity,
): Point[] {
  const byStart = new Map<number, Range>();
  for (const bucket of buckets) if (bucket.site === site) byStart.set(bucket.start, bucket[quantity]);
  const shift = width > 10 * MINUTE ? width / 2 : 0;
  const result: Point[] = [];
  for (let start = Math.floor(window.from / width) * width; start < window.to; start += width) {
    const range = byStart.get(start);
    const time = Math.min(Math.max(start + shift, window.from), window.to);
    result.push({ time, value: range?.mean, low: range?.min, high: range?.max });
  }
  return result;
}

function withoutRange({ time, value }: Point): Point {
  return { time, value };
}

/** Lowest and highest value of all that is drawn. */
function extent(series: readonly Series[]): [low: number, high: number] {
  const drawn = series.flatMap(({ points: coarse, detail = [] }) => [...coarse, ...detail]);
  return [
    min(drawn, (point) => point.low ?? point.value) ?? 0,
    max(drawn, (point) => point.high ?? point.value) ?? 0,
  ];
}

/** Room at both ends, and no axis that makes noise look like weather. */
function padded(low: number, high: number, share: number, least: number): [low: number, high: number] {
  const middle = (low + high) / 2;
  const half = Math.max((high - low) * (0.5 + share), least / 2);
  return [middle - half, middle + half];
}

function duration(milliseconds: number): string {
  const minutes = milliseconds / MINUTE;
  return minutes < 60 ? `${minutes} minutes` : minutes === 60 ? "hour" : `${minutes / 60} hours`;
}

/** `4 March 2026`, or the first and the last day. */
function span({ from, to }: Window): string {
  const full = utcFormat("%-d %B %Y");
  const [first, last] = [new Date(from), new Date(to - 1)];
  if (full(first) === full(last)) return full(first);
  const sameYear = first.getUTCFullYear() === last.getUTCFullYear();
  return `${utcFormat(sameYear ? "%-d %B" : "%-d %B %Y")(first)} to ${full(last)}`;
}

function list(names: readonly string[]): string {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}
