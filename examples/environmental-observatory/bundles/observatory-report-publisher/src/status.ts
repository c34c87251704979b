import type { Metrics, SiteMetrics } from "./metrics.ts";

const HOUR = 3_600_000;

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

export interface Status {
  readonly state: "ok" | "alert";
  readonly window: Metrics["window"];
  readonly pm25ThresholdUgM3: number;
  readonly alerts: readonly Alert[];
  readonly sites: readonly {
    readonly site: string;
    readonly state: "ok" | "alert";
    readonly completeness: number;
  }[];
}

/** Equal metrics and threshold give an equal status: it has no time of its own. */
export function assess({ window, sites }: Metrics, threshold: number): Status {
  const alerts = sites
    .flatMap((site) => siteAlerts(site, threshold))
    .sort(
      (left, right) => Date.parse(left.from) - Date.parse(right.from) || (left.site < right.site ? -1 : 1),
    );
  const alerting = new Set(alerts.map(({ site }) => site));
  return {
    state: alerts.length > 0 ? "alert" : "ok",
    window,
    pm25ThresholdUgM3: threshold,
    alerts,
    sites: sites.map(({ site, completeness }) => ({
      site,
      state: alerting.has(site) ? "alert" : "ok",
      completeness,
    })),
  };
}

/** An hour without readings ends an alert. */
function siteAlerts({ site, hourlyPm25UgM3 }: SiteMetrics, threshold: number): Alert[] {
  const alerts: Alert[] = [];
  const hours = [...hourlyPm25UgM3].sort((left, right) => Date.parse(left.hour) - Date.parse(right.hour));
  for (const { hour, mean } of hours) {
    if (mean <= threshold) continue;
    const start = Date.parse(hour);
    const to = new Date(start + HOUR).toISOString();
    const current = alerts.at(-1);
    if (current && Date.parse(current.to) === start) {
      const peak = mean > current.peakUgM3 ? { peakUgM3: mean, peakHour: hour } : {};
      alerts[alerts.length - 1] = { ...current, ...peak, to, hours: current.hours + 1 };
    } else {
      alerts.push({
        site,
        from: hour,
        to,
        hours: 1,
        peakUgM3: mean,
        peakHour: hour,
        thresholdUgM3: threshold,
      });
    }
  }
  return alerts.map((alert) => ({ ...alert, peakUgM3: Math.round(alert.peakUgM3 * 100) / 100 }));
}

export function hoursAbove({ hourlyPm25UgM3 }: SiteMetrics, threshold: number): number {
  return hourlyPm25UgM3.filter(({ mean }) => mean > threshold).length;
}
