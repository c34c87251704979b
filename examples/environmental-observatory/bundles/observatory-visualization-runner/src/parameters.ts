export interface Parameters {
  /** Hourly mean in µg/m³ above which a site is in alert. */
  readonly pm25Threshold: number;
  /** Length of the window that is shown. */
  readonly hours: number;
  /** End of the window, milliseconds since 1970; null: the end of the hour of the newest reading. */
  readonly until: number | null;
  /** What an instrument should deliver. */
  readonly readingsPerHour: number;
}

const KNOWN = ["pm25Threshold", "hours", "until", "readingsPerHour"];
const ISO_HOUR = /^\d{4}-\d{2}-\d{2}T\d{2}:00(:00(\.0+)?)?Z$/;

/** Fills in defaults (an absent or null value) and throws an Error that names the parameter, what it got and what it wants. */
export function parseParameters(given: Readonly<Record<string, unknown>>): Parameters {
  const unknown = Object.keys(given).filter((key) => !KNOWN.includes(key));
  if (unknown.length > 0) {
    throw new Error(`unknown parameter ${unknown.join(", ")}; known are ${KNOWN.join(", ")}`);
  }
  const pm25Threshold = given["pm25Threshold"] ?? 35;
  if (typeof pm25Threshold !== "number" || !(pm25Threshold > 0 && Number.isFinite(pm25Threshold))) {
    throw new Error(
      `parameter pm25Threshold: ${JSON.stringify(pm25Threshold)} is not a number of µg/m³ above 0`,
    );
  }
  return {
    pm25Threshold,
    hours: integer("hours", given["hours"] ?? 24, 744),
    until: parseUntil(given["until"] ?? null),
    readingsPerHour: integer("readingsPerHour", given["readingsPerHour"] ?? 6, 3600),
  };
}

function parseUntil(value: unknown): number | null {
  if (value === null) return null;
  const time = typeof value === "string" && ISO_HOUR.test(value) ? Date.parse(value) : Number.NaN;
  if (Number.isNaN(time)) {
    throw new Error(
      `parameter until: ${JSON.stringify(value)} is not a full hour in UTC such as 2026-03-05T00:00:00Z`,
    );
  }
  return time;
}

function integer(name: string, value: unknown, high: number): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < 1 || value > high) {
    throw new Error(`parameter ${name}: ${JSON.stringify(value)} is not a whole number from 1 to ${high}`);
  }
  return value;
}
