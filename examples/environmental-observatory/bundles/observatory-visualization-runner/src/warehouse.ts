import { type DuckDBConnection, DuckDBInstance, type DuckDBValue } from "@duckdb/node-api";

/** All times are milliseconds since 1970, in UTC; a window is [from, to). */
export interface Window {
  readonly from: number;
  readonly to: number;
}

export interface Range {
  readonly min: number;
  readonly mean: number;
  readonly max: number;
}

export interface SiteSummary {
  readonly site: string;
  readonly instruments: number;
  readonly readings: number;
  readonly temperatureC: Range;
  readonly relativeHumidityPct: Range;
  readonly pm25UgM3: Range;
  readonly batteryVoltage: { readonly min: number; readonly latest: number };
}

/** The readings of all instruments of a site in one stretch of time. */
export interface Bucket {
  readonly site: string;
  readonly start: number;
  readonly readings: number;
  readonly temperatureC: Range;
  readonly relativeHumidityPct: Range;
  readonly pm25UgM3: Range;
}

type Row = Record<string, DuckDBValue>;

const SPAN = `
  SELECT CAST(epoch_ms(min(observed_at)) AS DOUBLE) AS first, CAST(epoch_ms(max(observed_at)) AS DOUBLE) AS last
  FROM readings`;

const IN_WINDOW =
  "observed_at >= make_timestamp_ms($from::BIGINT) AND observed_at < make_timestamp_ms($to::BIGINT)";

const RANGES = (["temperature_c", "relative_humidity_pct", "pm2_5_ug_m3"] as const)
  .map(
    (column) =>
      `min(${column}) AS ${column}_min, avg(${column}) AS ${column}_mean, max(${column}) AS ${column}_max`,
  )
  .join(", ");

const SITES = `
  SELECT site, CAST(count(DISTINCT instrument_id) AS DOUBLE) AS instruments, CAST(count(*) AS DOUBLE) AS readings, ${RANGES},
    min(battery_voltage) AS battery_min, arg_max(battery_voltage, observed_at) AS battery_latest
  FROM readings WHERE ${IN_WINDOW}
  GROUP BY site ORDER BY site`;

const BUCKETS = `
  SELECT site, CAST(epoch_ms(observed_at) // $width::BIGINT * $width::BIGINT AS DOUBLE) AS start,
    CAST(count(*) AS DOUBLE) AS readings, ${RANGES}
  FROM readings WHERE ${IN_WINDOW}
  GROUP BY ALL ORDER BY site, start`;

/** A warehouse.duckdb, opened to read only. */
export class Warehouse {
  private readonly instance: DuckDBInstance;
  private readonly connection: DuckDBConnection;

  private constructor(instance: DuckDBInstance, connection: DuckDBConnection) {
    this.instance = instance;
    this.connection = connection;
  }

  /** Extensions are neither looked for nor downloaded, and queries can't reach other files. */
  static async open(path: string): Promise<Warehouse> {
    const instance = await DuckDBInstance.create(path, {
      access_mode: "READ_ONLY",
      threads: "2",
      autoinstall_known_extensions: "false",
      autoload_known_extensions: "false",
      enable_external_access: "false",
    });
    return new Warehouse(instance, await instance.connect());
  }

  close(): void {
    this.connection.closeSync();
    this.instance.closeSync();
  }

  /** Times of the first and the last reading, or undefined if there is none. */
  async span(): Promise<{ first: number; last: number } | undefined> {
    const [row] = await this.rows(SPAN, {});
    return row && row["last"] !== null
      ? { first: Number(row["first"]), last: Number(row["last"]) }
      : undefined;
  }

  /** By site, sorted by its name. */
  async sites(window: Window): Promise<SiteSummary[]> {
    const rows = await this.rows(SITES, { ...window });
    return rows.map((row) => ({
      site: String(row["site"]),
      instruments: Number(row["instruments"]),
      readings: Number(row["readings"]),
      ...ranges(row),
      batteryVoltage: { min: Number(row["battery_min"]), latest: Number(row["battery_latest"]) },
    }));
  }

  /** By site and start; stretches of `width` milliseconds without a reading are not listed. */
  async buckets(window: Window, width: number): Promise<Bucket[]> {
    const rows = await this.rows(BUCKETS, { ...window, width });
    return rows.map((row) => ({
      site: String(row["site"]),
      start: Number(row["start"]),
      readings: Number(row["readings"]),
      ...ranges(row),
    }));
  }

  private async rows(query: string, values: Record<string, number>): Promise<Row[]> {
    return (await this.connection.runAndReadAll(query, values)).getRowObjects();
  }
}

function ranges(row: Row): Pick<Bucket, "temperatureC" | "relativeHumidityPct" | "pm25UgM3"> {
  const range = (column: string): Range => ({
    min: Number(row[`${column}_min`]),
    mean: Number(row[`${column}_mean`]),
    max: Number(row[`${column}_max`]),
  });
  return {
    temperatureC: range("temperature_c"),
    relativeHumidityPct: range("relative_humidity_pct"),
    pm25UgM3: range("pm2_5_ug_m3"),
  };
}
