export interface Site {
  readonly name: string;
  readonly latitude: number;
  readonly longitude: number;
  readonly elevationM: number;
  /** 0 to 1: how strongly the rush hours show in PM2.5. */
  readonly traffic: number;
}

export interface Parameters {
  readonly seed: string;
  /** First hour, in milliseconds since 1970. */
  readonly start: number;
  readonly hours: number;
  readonly sites: readonly Site[];
  readonly instrumentsPerSite: number;
  /** Rows in an hour; a divisor of 60. */
  readonly rowsPerFile: number;
  /** Share of rows that an instrument garbles. */
  readonly faultRate: number;
}

const KNOWN = ["seed", "start", "hours", "sites", "instrumentsPerSite", "rowsPerFile", "faultRate"];
const SITE_KEYS = ["name", "latitude", "longitude", "elevationM", "traffic"];
const SITE_NAME = /^[a-z0-9]+(-[a-z0-9]+)*$/;
const ISO_HOUR = /^\d{4}-\d{2}-\d{2}T\d{2}:00(:00(\.0+)?)?Z$/;
const MAX_FILES = 20_000;

export const DEFAULT_SITES: readonly Site[] = [
  { name: "harbour-quay", latitude: 53.54, longitude: 9.98, elevationM: 4, traffic: 0.7 },
  { name: "city-centre", latitude: 53.55, longitude: 10.0, elevationM: 12, traffic: 1 },
  { name: "heath-ridge", latitude: 53.21, longitude: 9.93, elevationM: 160, traffic: 0.2 },
];

/** Fills in defaults (an absent or null value) and throws an Error that names the parameter, what it got and what it wants. */
export function parseParameters(given: Readonly<Record<string, unknown>>): Parameters {
  rejectUnknown(given, KNOWN, "parameter");
  const parameters: Parameters = {
    seed: parseSeed(given["seed"] ?? 42),
    start: parseStart(given["start"] ?? "2026-03-04T00:00:00Z"),
    hours: integer("hours", given["hours"] ?? 1, 1, 744),
    sites: parseSites(given["sites"] ?? DEFAULT_SITES),
    instrumentsPerSite: integer("instrumentsPerSite", given["instrumentsPerSite"] ?? 2, 1, 20),
    rowsPerFile: integer("rowsPerFile", given["rowsPerFile"] ?? 6, 1, 60),
    faultRate: number("faultRate", given["faultRate"] ?? 0.02, 0, 0.5),
  };
  if (60 % parameters.rowsPerFile !== 0) {
    throw new Error(
      `parameter rowsPerFile: ${parameters.rowsPerFile} rows don't divide an hour into whole minutes; use 6, 12, 30 or another divisor of 60`,
    );
  }
  const files = parameters.hours * parameters.sites.length * parameters.instrumentsPerSite;
  if (files > MAX_FILES) {
    throw new Error(
      `hours × sites × instrumentsPerSite makes ${files} files; at most ${MAX_FILES} are generated in one run, so ask for fewer hours`,
    );
  }
  return parameters;
}

function rejectUnknown(given: object, known: readonly string[], kind: string): void {
  const unknown = Object.keys(given).filter((key) => !known.includes(key));
  if (unknown.length > 0) {
    throw new Error(`unknown ${kind} ${unknown.join(", ")}; known are ${known.join(", ")}`);
  }
}

function parseSeed(value: unknown): string {
  if (typeof value === "number" && Number.isSafeInteger(value)) return String(value);
  if (typeof value === "string" && value.length > 0 && value.length <= 64) return value;
  throw new Error(
    `parameter seed: ${JSON.stringify(value)} is neither an integer nor a text of 1 to 64 characters`,
  );
}

function parseStart(value: unknown): number {
  const time = typeof value === "string" && ISO_HOUR.test(value) ? Date.parse(value) : Number.NaN;
  if (Number.isNaN(time)) {
    throw new Error(
      `parameter start: ${JSON.stringify(value)} is not a full hour in UTC such as 2026-03-04T00:00:00Z`,
    );
  }
  return time;
}

function parseSites(value: unknown): readonly Site[] {
  if (!Array.isArray(value) || value.length === 0 || value.length > 50) {
    throw new Error(
      'parameter sites: expected a list of 1 to 50 names or objects such as {"name": "city-centre"}',
    );
  }
  const sites = value.map((item: unknown, index) => parseSite(item, `sites[${index}]`));
  const names = sites.map((site) => site.name);
  const repeated = names.find((name, index) => names.indexOf(name) !== index);
  if (repeated !== undefined) throw new Error(`parameter sites: ${repeated} is listed twice`);
  return sites;
}

function parseSite(item: unknown, at: string): Site {
  const fields: Record<string, unknown> =
    typeof item === "object" && item !== null ? { ...item } : { name: item };
  rejectUnknown(fields, SITE_KEYS, `key in ${at}:`);
  const name = fields["name"];
  if (typeof name !== "string" || name.length > 40 || !SITE_NAME.test(name)) {
    throw new Error(
      `parameter ${at}: ${JSON.stringify(name)} is not a site name (lower-case letters, digits and single hyphens, at most 40)`,
    );
  }
  return {
    name,
    latitude: number(`${at}.latitude`, fields["latitude"] ?? 50, -90, 90),
    longitude: number(`${at}.longitude`, fields["longitude"] ?? 0, -180, 180),
    elevationM: number(`${at}.elevationM`, fields["elevationM"] ?? 50, -430, 6000),
    traffic: number(`${at}.traffic`, fields["traffic"] ?? 0.6, 0, 1),
  };
}

function number(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== "number" || !(value >= low && value <= high)) {
    throw new Error(`parameter ${name}: ${JSON.stringify(value)} is not a number from ${low} to ${high}`);
  }
  return value;
}

function integer(name: string, value: unknown, low: number, high: number): number {
  if (!Number.isInteger(value)) {
    throw new Error(
      `parameter ${name}: ${JSON.stringify(value)} is not a whole number from ${low} to ${high}`,
    );
  }
  return number(name, value, low, high);
}
