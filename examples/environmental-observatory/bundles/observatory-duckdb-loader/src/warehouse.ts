import { type DuckDBConnection, DuckDBInstance, type DuckDBValue } from "@duckdb/node-api";

/** Times are UTC without a zone, so that no session setting can shift them. */
const SCHEMA = `
  CREATE TABLE IF NOT EXISTS readings (
    site VARCHAR NOT NULL,
    instrument_id VARCHAR NOT NULL,
    observed_at TIMESTAMP NOT NULL,
    temperature_c DOUBLE NOT NULL,
    relative_humidity_pct DOUBLE NOT NULL,
    pm2_5_ug_m3 DOUBLE NOT NULL,
    battery_voltage DOUBLE NOT NULL
  );
  CREATE TABLE IF NOT EXISTS loads (
    run_id VARCHAR NOT NULL,
    loaded_at TIMESTAMP NOT NULL,
    as_of TIMESTAMP,
    partitions INTEGER NOT NULL,
    rows INTEGER NOT NULL
  );
  CREATE OR REPLACE TEMP TABLE staged (
    site VARCHAR,
    instrument_id VARCHAR,
    observed_at TIMESTAMP,
    temperature_c DOUBLE,
    relative_humidity_pct DOUBLE,
    pm2_5_ug_m3 DOUBLE,
    battery_voltage DOUBLE,
    partition VARCHAR
  );`;

const COLUMNS =
  "site, instrument_id, observed_at, temperature_c, relative_humidity_pct, pm2_5_ug_m3, battery_voltage";

const READ_CSV_OPTIONS = `
  auto_detect = false, header = true, delim = ',', quote = '', escape = '', nullstr = '', strict_mode = true, filename = true,
  columns = {
    'timestamp': 'TIMESTAMP', 'instrument_id': 'VARCHAR', 'site': 'VARCHAR', 'temperature_c': 'DOUBLE',
    'relative_humidity_pct': 'DOUBLE', 'pm2_5_ug_m3': 'DOUBLE', 'battery_voltage': 'DOUBLE'
  }`;

/** A row belongs to the partition whose path says its own site, date and hour. */
const MISPLACED = `
  SELECT partition, site, strftime(observed_at, '%Y-%m-%dT%H:%M:%SZ') AS observed_at
  FROM staged
  WHERE NOT ends_with(partition, 'site=' || site || strftime(observed_at, '/date=%Y-%m-%d/hour=%H.csv'))
  ORDER BY ALL LIMIT 1`;

const REPEATED = `
  SELECT instrument_id, strftime(observed_at, '%Y-%m-%dT%H:%M:%SZ') AS observed_at
  FROM staged GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1`;

const DELETE_STAGED_PARTITIONS = `
  DELETE FROM readings
  USING (SELECT DISTINCT site, date_trunc('hour', observed_at) AS hour FROM staged) AS arriving
  WHERE readings.site = arriving.site
    AND readings.observed_at >= arriving.hour AND readings.observed_at < arriving.hour + INTERVAL 1 HOUR`;

const INSERT_STAGED = `INSERT INTO readings (${COLUMNS}) SELECT ${COLUMNS} FROM staged ORDER BY site, observed_at, instrument_id`;

const RECORD_LOAD = `
  INSERT INTO loads (run_id, loaded_at, as_of, partitions, rows)
  VALUES ($runId, CAST(now() AT TIME ZONE 'UTC' AS TIMESTAMP), CAST($asOf AS TIMESTAMP), $partitions, $rows)`;

/** The whole days that were touched, also rows that an earlier load brought: a day's file replaces the day's earlier file. */
const EXPORT_DAYS = `
  SELECT ${COLUMNS}, strftime(observed_at, '%Y-%m-%d') AS date
  FROM readings
  WHERE (site, CAST(observed_at AS DATE)) IN (SELECT DISTINCT site, CAST(observed_at AS DATE) FROM staged)
  ORDER BY site, observed_at, instrument_id`;

export interface Load {
  readonly runId: string;
  readonly asOf: string | null;
}

export interface Settings {
  readonly threads: number;
  /** Where DuckDB may spill what doesn't fit into memory. */
  readonly spillDirectory: string;
}

/** A DuckDB file with all readings so far. Close it: only then is everything in that one file. */
export class Warehouse {
  private readonly instance: DuckDBInstance;
  private readonly connection: DuckDBConnection;

  private constructor(instance: DuckDBInstance, connection: DuckDBConnection) {
    this.instance = instance;
    this.connection = connection;
  }

  /** Opens the file, or creates it. Extensions are neither looked for nor downloaded. */
  static async open(path: string, { threads, spillDirectory }: Settings): Promise<Warehouse> {
    const instance = await DuckDBInstance.create(path, {
      threads: String(threads),
      temp_directory: spillDirectory,
      autoinstall_known_extensions: "false",
      autoload_known_extensions: "false",
    });
    const connection = await instance.connect();
    const warehouse = new Warehouse(instance, connection);
    try {
      await connection.run(SCHEMA);
    } catch (error) {
      warehouse.close();
      throw error;
    }
    return warehouse;
  }

  /** Reads partition files to where {@link load} takes them from. Throws if a line is not what the columns say. */
  async stage(files: readonly string[]): Promise<void> {
    await this.connection.run(`
      INSERT INTO staged
      SELECT site, instrument_id, timestamp, temperature_c, relative_humidity_pct, pm2_5_ug_m3, battery_voltage,
        replace(filename, '\\', '/')
      FROM read_csv([${files.map(literal).join(", ")}], ${READ_CSV_OPTIONS})`);
  }

  /**
   * Replaces, in one transaction, what the staged partitions held before, and records the load. Loading the same partitions
   * again leaves the same readings. Returns the number of rows loaded.
   */
  async load({ runId, asOf }: Load): Promise<number> {
    await this.refuse(
      MISPLACED,
      (row) =>
        `${row["partition"]} has a row of ${row["site"]} at ${row["observed_at"]}, which belongs to another partition`,
    );
    await this.refuse(REPEATED, (row) => `${row["instrument_id"]} has two readings at ${row["observed_at"]}`);
    const rows = await this.count("SELECT count(*) AS n FROM staged");
    const partitions = await this.count("SELECT count(DISTINCT partition) AS n FROM staged");
    await this.connection.run("BEGIN TRANSACTION");
    try {
      await this.connection.run(DELETE_STAGED_PARTITIONS);
      await this.connection.run(INSERT_STAGED);
      await this.connection.run(RECORD_LOAD, { runId, asOf, partitions, rows });
      await this.connection.run("COMMIT");
    } catch (error) {
      await this.connection.run("ROLLBACK");
      throw error;
    }
    return rows;
  }

  /** Writes `site=…/date=…/readings_0.parquet` for each day that the staged partitions are of. */
  async exportDays(directory: string): Promise<void> {
    await this.connection.run(`
      COPY (${EXPORT_DAYS}) TO ${literal(directory)}
      (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (site, date), FILENAME_PATTERN 'readings_{i}')`);
  }

  async totalRows(): Promise<number> {
    return this.count("SELECT count(*) AS n FROM readings");
  }

  async duckdbVersion(): Promise<string> {
    const [row] = await this.rows("SELECT version() AS version");
    return String(row!["version"]);
  }

  /** Moves the write-ahead log into the file. */
  async checkpoint(): Promise<void> {
    await this.connection.run("CHECKPOINT");
  }

  close(): void {
    this.connection.closeSync();
    this.instance.closeSync();
  }

  private async refuse(query: string, message: (row: Record<string, DuckDBValue>) => string): Promise<void> {
    const [row] = await this.rows(query);
    if (row) throw new Error(`input partitions: ${message(row)}; nothing was loaded`);
  }

  private async count(query: string): Promise<number> {
    const [row] = await this.rows(query);
    return Number(row!["n"]);
  }

  private async rows(query: string): Promise<Record<string, DuckDBValue>[]> {
    return (await this.connection.runAndReadAll(query)).getRowObjects();
  }
}

function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}
