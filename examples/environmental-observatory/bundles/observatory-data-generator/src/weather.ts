import type { Site } from "./parameters.ts";
import { between, drift, hash32, normal, uniform } from "./random.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

export interface Reading {
  readonly temperatureC: number;
  readonly relativeHumidityPct: number;
  readonly pm25UgM3: number;
  readonly batteryVoltage: number;
}

/** The weather and the air at the sites of an observatory, as a pure function of seed, site and time. */
export class Weather {
  private readonly seed: string;
  private readonly sites: readonly Site[];

  constructor(seed: string, sites: readonly Site[]) {
    this.seed = seed;
    this.sites = sites;
  }

  /** What `instrument` at `site` reads at `time` (milliseconds since 1970), rounded as the instruments do. */
  read(site: Site, instrument: string, time: number): Reading {
    const key = `${this.seed}/${instrument}`;
    const at = `${key}/${time}`;
    const temperature =
      this.temperature(site, time) + between(-0.45, 0.45, `${key}/bias`) + 0.06 * normal(`${at}/t`);
    const humidity =
      this.humidity(site, time) + between(-2.2, 2.2, `${key}/rh-bias`) + 0.3 * normal(`${at}/rh`);
    const pm25 = this.pm25(site, time) * between(0.93, 1.07, `${key}/pm-gain`) + 0.5 * normal(`${at}/pm`);
    const battery = this.battery(site, instrument, time) + 0.006 * normal(`${at}/v`);
    return {
      temperatureC: round(temperature, 2),
      relativeHumidityPct: round(clamp(humidity, 12, 99.5), 1),
      pm25UgM3: round(Math.max(0.6, pm25), 1),
      batteryVoltage: round(battery, 2),
    };
  }

  /** Season by latitude, 6.5 K less per kilometre, warmest in mid-afternoon, fronts every few days. */
  private temperature(site: Site, time: number): number {
    return (
      this.dailyMean(site, time) + this.dailySwing(site, time) + 0.35 * this.drift(site, "gust", time, 45)
    );
  }

  private dailyMean(site: Site, time: number): number {
    const north = Math.abs(site.latitude);
    const dayOfYear = ((time - Date.UTC(new Date(time).getUTCFullYear(), 0, 1)) / DAY) % 366;
    const warmest = site.latitude >= 0 ? 203 : 21;
    const season = 0.17 * north * Math.cos((2 * Math.PI * (dayOfYear - warmest)) / 365.25);
    const fronts = 1.6 * drift(time / MINUTE, 40 * 60, `${this.seed}/front`);
    return (
      28.5 -
      0.36 * north +
      season -
      0.0065 * site.elevationM +
      fronts +
      between(-0.6, 0.6, this.key(site, "mean"))
    );
  }

  /** Departure from the day's mean: a sine with its top at 15 h solar time, sharpened so that mornings warm faster than evenings cool. */
  private dailySwing(site: Site, time: number): number {
    const hour = solarHour(site, time);
    const range = between(3.2, 5.4, this.key(site, "range"));
    return (
      range * (Math.cos((2 * Math.PI * (hour - 15)) / 24) + 0.22 * Math.cos((4 * Math.PI * (hour - 14)) / 24))
    );
  }

  /** Equal water in warmer air is a lower relative humidity: falls as the day warms. */
  private humidity(site: Site, time: number): number {
    const moisture =
      70 + between(-4, 6, this.key(site, "moisture")) + 4 * this.drift(site, "moisture", time, 600);
    return moisture - 3.6 * this.dailySwing(site, time) + 1.2 * this.drift(site, "damp", time, 50);
  }

  /** Background, two rush hours, and the plume of an episode if it is over this site, in µg/m³. */
  private pm25(site: Site, time: number): number {
    const hour = solarHour(site, time);
    const background = between(6, 9.5, this.key(site, "background")) - 0.004 * Math.min(800, site.elevationM);
    const rush = site.traffic * (10 * bell(hour, 8, 1.1, 1.7) + 9 * bell(hour, 18.6, 1.5, 2.2));
    const weather = Math.exp(0.13 * this.drift(site, "mixing", time, 70));
    return (background + rush) * weather + this.episode(site, time);
  }

  /** Each UTC day one site has its plume of smoke, in the evening of its solar time, for some four hours. */
  private episode(site: Site, time: number): number {
    const today = Math.floor(time / DAY);
    let plume = 0;
    for (const day of [today - 1, today, today + 1]) {
      const key = `${this.seed}/episode/${day}`;
      if (this.sites[hash32(key) % this.sites.length]?.name !== site.name) continue;
      const hour = (between(18, 20, `${key}/hour`) - site.longitude / 15 + 48) % 24;
      const sinceTop = (time - (day * DAY + hour * HOUR)) / HOUR;
      const width = sinceTop < 0 ? 1.1 : 1.9;
      const wobble = 1 + 0.05 * this.drift(site, "plume", time, 25);
      plume += between(42, 56, `${key}/height`) * Math.exp(-0.5 * (sinceTop / width) ** 2) * wobble;
    }
    return plume;
  }

  /** Runs down over some five weeks until the battery is changed; the solar panel lifts it by day. */
  private battery(site: Site, instrument: string, time: number): number {
    const key = `${this.seed}/${instrument}`;
    const lifeDays = between(30, 42, `${key}/battery-life`);
    const used = (time / DAY / lifeDays + uniform(`${key}/battery-age`)) % 1;
    const sun = Math.max(0, Math.cos((2 * Math.PI * (solarHour(site, time) - 13)) / 24));
    return 12.95 - 1.05 * used ** 1.3 + 0.14 * sun;
  }

  private drift(site: Site, what: string, time: number, spacingMinutes: number): number {
    return drift(time / MINUTE, spacingMinutes, this.key(site, what));
  }

  private key(site: Site, what: string): string {
    return `${this.seed}/${site.name}/${what}`;
  }
}

/** Hour of the day by the sun, in [0, 24). */
function solarHour(site: Site, time: number): number {
  return ((((time % DAY) / HOUR + site.longitude / 15) % 24) + 24) % 24;
}

/** 1 at `top`, falling off on a 24-hour clock, with one width before the top and another after it. */
function bell(hour: number, top: number, rise: number, fall: number): number {
  const distance = ((hour - top + 36) % 24) - 12;
  return Math.exp(-0.5 * (distance / (distance < 0 ? rise : fall)) ** 2);
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, value));
}

function round(value: number, digits: number): number {
  return Math.round(value * 10 ** digits) / 10 ** digits;
}
