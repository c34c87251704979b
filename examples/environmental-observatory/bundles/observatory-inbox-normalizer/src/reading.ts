export const COLUMNS = [
  "timestamp",
  "instrument_id",
  "site",
  "temperature_c",
  "relative_humidity_pct",
  "pm2_5_ug_m3",
  "battery_voltage",
] as const;

export const HEADER = COLUMNS.join(",");

/** What the sensors can measure; a value outside of it is a fault, not weather. */
const RANGES: readonly (readonly [column: number, low: number, high: number])[] = [
  [3, -60, 60],
  [4, 0, 100],
  [5, 0, 1000],
  [6, 5, 16],
];

const FILE_NAME = /^instrument_([a-z0-9]+(?:-[a-z0-9]+)*)_(\d{4})(\d{2})(\d{2})(\d{2})(\d{2})\.csv$/;
const TIMESTAMP = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,3})?Z$/;
const SITE = /^[a-z0-9]+(?:-[a-z0-9]+)*$/;
const NUMBER = /^-?\d+(?:\.\d+)?$/;
const HOUR = 3_600_000;

/** Reasons for which a file or a line is rejected; they are the keys of the result's `rejectsByReason`. */
export type Reason =
  | "file_name"
  | "header"
  | "column_count"
  | "timestamp"
  | "outside_file_hour"
  | "instrument"
  | "site"
  | "not_a_number"
  | "out_of_range"
  | "duplicate";

/** What the name of an instrument file says: who wrote it, and the hour (milliseconds since 1970) that its rows are from. */
export interface FileName {
  readonly instrument: string;
  readonly from: number;
}

export interface Reading {
  /** Milliseconds since 1970. */
  readonly time: number;
  readonly instrument: string;
  readonly site: string;
  /** The four measured values as the instrument wrote them. */
  readonly values: readonly string[];
}

export class Rejected extends Error {
  readonly reason: Reason;

  constructor(reason: Reason, message: string) {
    super(message);
    this.name = "Rejected";
    this.reason = reason;
  }
}

/** Throws {@link Rejected} unless the name is `instrument_<id>_<YYYYMMDDHHmm>.csv` with a time that exists. */
export function parseFileName(name: string): FileName {
  const match = FILE_NAME.exec(name);
  const [, instrument = "", year, month, day, hour, minute] = match ?? [];
  const from = match ? exactTime(`${year}-${month}-${day}T${hour}:${minute}:00Z`) : undefined;
  if (from === undefined) {
    throw new Rejected("file_name", `${name} is not named instrument_<id>_<YYYYMMDDHHmm>.csv`);
  }
  return { instrument, from };
}

/** Throws {@link Rejected} with the first thing that is wrong with the line. */
export function parseLine(line: string, file: FileName): Reading {
  const fields = line.split(",");
  if (fields.length !== COLUMNS.length) {
    throw new Rejected("column_count", `${fields.length} columns instead of ${COLUMNS.length}`);
  }
  const [timestamp = "", instrument = "", site = "", ...values] = fields;
  const time = TIMESTAMP.test(timestamp) ? exactTime(timestamp) : undefined;
  if (time === undefined) {
    throw new Rejected("timestamp", `${timestamp} is not a time in UTC such as 2026-03-04T10:50:00Z`);
  }
  if (time < file.from || time >= file.from + HOUR) {
    throw new Rejected("outside_file_hour", `${timestamp} is not in the hour that the file's name gives`);
  }
  if (instrument !== file.instrument) {
    throw new Rejected("instrument", `row of ${instrument} in a file of ${file.instrument}`);
  }
  if (!SITE.test(site)) {
    throw new Rejected("site", `${site} is not a site name (lower-case letters, digits and single hyphens)`);
  }
  for (const [column, low, high] of RANGES) {
    checkRange(COLUMNS[column]!, fields[column]!, low, high);
  }
  return { time, instrument, site, values };
}

/** The row of a partition: times to the second, values as they came. */
export function formatReading({ time, instrument, site, values }: Reading): string {
  return [`${new Date(time).toISOString().slice(0, 19)}Z`, instrument, site, ...values].join(",");
}

function checkRange(column: string, text: string, low: number, high: number): void {
  if (!NUMBER.test(text)) throw new Rejected("not_a_number", `${column} is ${JSON.stringify(text)}`);
  const value = Number(text);
  if (value < low || value > high) {
    throw new Rejected("out_of_range", `${column} is ${text}; the sensor measures ${low} to ${high}`);
  }
}

/** `Date.parse` moves 31 February to March; a time that doesn't come back as it went in does not exist. */
function exactTime(iso: string): number | undefined {
  const time = Date.parse(iso);
  return !Number.isNaN(time) && new Date(time).toISOString().slice(0, 19) === iso.slice(0, 19)
    ? time
    : undefined;
}
