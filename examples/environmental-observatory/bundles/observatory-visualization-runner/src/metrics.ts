import type { Bucket, Range, SiteSummary, Window } from "./warehouse.ts";

const HOUR = 3_600_000;

export interface HourlyMean {
  readonly hour: string;
  /** Not rounded: who compares it with another threshold decides as this bundle would. */
  readonly mean: number;
  readonly readings: number;
}

/** Consecutive hours in which a site's hourly mean of PM2.5 is above the threshold: [from, to). */
export interface Alert {
  readonly site: string;
  readonly from: string;
  readonly to: string;
  readonly hours: number;
  readonly peakUgM3: number;
  readonly peakHour: string;
  readonly thresholdUgM3: number;
}

export interface SiteMetrics extends SiteSummary {
  readonly expectedReadings: number;
  /** Share of the expected readings that arrived, 0 to 1. */
  readonly completeness: number;
  readonly hoursAboveThreshold: number;
  readonly maxHourlyPm25UgM3: number;
  readonly hourlyPm25UgM3: readonly HourlyMean[];
}

export interface Metrics {
  readonly window: { readonly from: string; readonly to: string; readonly hours: number };
  readonly pm25ThresholdUgM3: number;
  readonly sites: readonly SiteMetrics[];
  readonly alerts: readonly Alert[];
}

export interface Expectations {
  readonly pm25Threshold: number;
  readonly readingsPerHour: number;
}

/** `hourly` are the buckets of one hour each. */
export function computeMetrics(
  window: Window,
  summaries: readonly SiteSummary[],
  hourly: readonly Bucket[],
  { pm25Threshold, readingsPerHour }: Expectations,
): Metrics {
  const hours = (window.to - window.from) / HOUR;
  const sites = summaries.map((summary): SiteMetrics => {
    const own = hourly.filter((bucket) => bucket.site === summary.site);
    const means = own.map((bucket) => bucket.pm25UgM3.mean);
    const expectedReadings = summary.instruments * hours * readingsPerHour;
    return {
      ...summary,
      temperatureC: rounded(summary.temperatureC),
      relativeHumidityPct: rounded(summary.relativeHumidityPct),
      pm25UgM3: rounded(summary.pm25UgM3),
      expectedReadings,
      completeness: Math.min(1, round(summary.readings / expectedReadings, 4)),
      hoursAboveThreshold: means.filter((mean) => mean > pm25Threshold).length,
      maxHourlyPm25UgM3: round(Math.max(...means), 2),
      hourlyPm25UgM3: own.map(({ start, pm25UgM3, readings }) => ({
        hour: iso(start),
        mean: pm25UgM3.mean,
        readings,
      })),
    };
  });
  return {
    window: { from: iso(window.from), to: iso(window.to), hours },
    pm25ThresholdUgM3: pm25Threshold,
    sites,
    alerts: findAlerts(hourly, pm25Threshold),
  };
}

/** Alerts by time and then site. An hour without readings ends an alert. */
export function findAlerts(hourly: readonly Bucket[], threshold: number): Alert[] {
  const episodes: Bucket[][] = [];
  const exceeding = hourly
    .filter((bucket) => bucket.pm25UgM3.mean > threshold)
    .sort((left, right) =>
      left.site === right.site ? left.start - right.start : left.site < right.site ? -1 : 1,
    );
  for (const bucket of exceeding) {
    const episode = episodes.at(-1);
    const previous = episode?.at(-1);
    if (previous?.site === bucket.site && previous.start + HOUR === bucket.start) episode!.push(bucket);
    else episodes.push([bucket]);
  }
  episodes.sort(([left], [right]) => left!.start - right!.start);
  return episodes.map((episode): Alert => {
    const first = episode[0]!;
    const peak = episode.reduce((top, bucket) => (bucket.pm25UgM3.mean > top.pm25UgM3.mean ? bucket : top));
    return {
      site: first.site,
      from: iso(first.start),
      to: iso(first.start + episode.length * HOUR),
      hours: episode.length,
      peakUgM3: round(peak.pm25UgM3.mean, 2),
      peakHour: iso(peak.start),
      thresholdUgM3: threshold,
    };
  });
}

function rounded({ min, mean, max }: Range): Range {
  return { min: round(min, 2), mean: round(mean, 2), max: round(max, 2) };
}

function round(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits;
}

function iso(time: number): string {
  return new Date(time).toISOString();
}
