import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { DuckDBInstance } from "@duckdb/node-api";
import { handler, type Result } from "../src/index.ts";

const HEADER = "timestamp,instrument_id,site,temperature_c,relative_humidity_pct,pm2_5_ug_m3,battery_voltage";
const TEN = "site=pier/date=2026-03-04/hour=10.csv";
const ELEVEN = "site=pier/date=2026-03-04/hour=11.csv";

let root = "";
let runs = 0;

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "loader-"));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

/** Runs the handler on these partitions (path → rows) and returns its result and where its outputs are. */
async function load(
  partitions: Record<string, string[]>,
  {
    warehouse,
    parameters = {},
    signal = new AbortController().signal,
  }: { warehouse?: string; parameters?: Record<string, unknown>; signal?: AbortSignal } = {},
): Promise<[Result, string]> {
  const id = `run-${(runs += 1)}`;
  const [outputDir, workDir, directory] = ["outputs", "tmp", "inputs"].map((name) =>
    join(root, id, name),
  ) as [string, string, string];
  for (const path of [outputDir, workDir, directory]) await mkdir(path, { recursive: true });
  for (const [path, rows] of Object.entries(partitions)) {
    await mkdir(dirname(join(directory, path)), { recursive: true });
    await writeFile(join(directory, path), `${[HEADER, ...rows].join("\n")}\n`);
  }
  const inputs = { partitions: directory, ...(warehouse === undefined ? {} : { warehouse }) };
  const logger = { info: () => {} };
  const result = await handler({
    parameters,
    inputs,
    outputDir,
    workDir,
    run: { id },
    signal,
    logger,
    progress: () => {},
  });
  return [result, outputDir];
}

async function query(database: string, sql: string): Promise<unknown[]> {
  const instance = await DuckDBInstance.create(
    database,
    database === ":memory:" ? {} : { access_mode: "READ_ONLY" },
  );
  const connection = await instance.connect();
  try {
    return (await connection.runAndReadAll(sql)).getRowObjectsJson();
  } finally {
    connection.closeSync();
    instance.closeSync();
  }
}

function row(time: string, temperature = 4.1, instrument = "pier-01"): string {
  return `2026-03-04T${time}Z,${instrument},pier,${temperature},81.0,9.5,12.60`;
}

const ALL = "SELECT * FROM readings ORDER BY observed_at, instrument_id";

test("readings arrive as they are, in one file that needs no write-ahead log", async () => {
  const [result, outputs] = await load(
    { [TEN]: [row("10:00:00"), row("10:10:00", -3.25)] },
    { parameters: { asOf: "2026-03-04T10:10:00.000Z" } },
  );
  assert.deepEqual(
    { ...result, duckdbVersion: "" },
    {
      rowsLoaded: 2,
      totalRows: 2,
      partitions: 1,
      continued: false,
      asOf: "2026-03-04T10:10:00.000Z",
      duckdbVersion: "",
    },
  );
  assert.match(result.duckdbVersion, /^v1\.5\.5/);
  assert.deepEqual((await readdir(outputs)).sort(), ["parquet", "warehouse.duckdb"]);
  const warehouse = join(outputs, "warehouse.duckdb");
  const reading = {
    site: "pier",
    instrument_id: "pier-01",
    relative_humidity_pct: 81,
    pm2_5_ug_m3: 9.5,
    battery_voltage: 12.6,
  };
  assert.deepEqual(await query(warehouse, ALL), [
    { ...reading, observed_at: "2026-03-04 10:00:00", temperature_c: 4.1 },
    { ...reading, observed_at: "2026-03-04 10:10:00", temperature_c: -3.25 },
  ]);
  assert.deepEqual(await query(warehouse, "SELECT run_id, as_of, partitions, rows FROM loads"), [
    { run_id: `run-${runs}`, as_of: "2026-03-04 10:10:00", partitions: 1, rows: 2 },
  ]);
});

test("loading the same partitions twice leaves the same readings", async () => {
  const partitions = { [TEN]: [row("10:00:00"), row("10:10:00")], [ELEVEN]: [row("11:00:00")] };
  const [, first] = await load(partitions);
  const [result, second] = await load(partitions, { warehouse: join(first, "warehouse.duckdb") });
  assert.deepEqual([result.rowsLoaded, result.totalRows, result.continued], [3, 3, true]);
  assert.deepEqual(
    await query(join(second, "warehouse.duckdb"), ALL),
    await query(join(first, "warehouse.duckdb"), ALL),
  );
  assert.equal((await query(join(second, "warehouse.duckdb"), "FROM loads")).length, 2);
});

test("a partition that arrives again replaces its earlier rows and leaves other partitions alone", async () => {
  const [, first] = await load({ [TEN]: [row("10:00:00"), row("10:10:00")], [ELEVEN]: [row("11:00:00")] });
  const [result, second] = await load(
    { [TEN]: [row("10:20:00", 7.7)] },
    { warehouse: join(first, "warehouse.duckdb") },
  );
  assert.deepEqual([result.rowsLoaded, result.totalRows], [1, 2]);
  assert.deepEqual(
    await query(
      join(second, "warehouse.duckdb"),
      "SELECT strftime(observed_at, '%H:%M') AS t, temperature_c AS c FROM readings ORDER BY 1",
    ),
    [
      { t: "10:20", c: 7.7 },
      { t: "11:00", c: 4.1 },
    ],
  );
});

test("the earlier warehouse is copied, not changed", async () => {
  const [, first] = await load({ [TEN]: [row("10:00:00")] });
  const warehouse = join(first, "warehouse.duckdb");
  const before = await readFile(warehouse);
  await load({ [ELEVEN]: [row("11:00:00")] }, { warehouse });
  assert.ok(before.equals(await readFile(warehouse)));
});

test("Parquet has the whole day, also the rows of an earlier load", async () => {
  const [, first] = await load({ [TEN]: [row("10:00:00")] });
  const [, second] = await load(
    { [ELEVEN]: [row("11:00:00")] },
    { warehouse: join(first, "warehouse.duckdb") },
  );
  const files = (await readdir(join(second, "parquet"), { recursive: true })).filter((path) =>
    path.endsWith(".parquet"),
  );
  assert.deepEqual(files, ["site=pier/date=2026-03-04/readings_0.parquet"]);
  const rows = await query(
    ":memory:",
    `SELECT site, CAST(date AS VARCHAR) AS date, strftime(observed_at, '%H:%M') AS t FROM read_parquet('${second}/parquet/**/*.parquet', hive_partitioning = true) ORDER BY t`,
  );
  assert.deepEqual(rows, [
    { site: "pier", date: "2026-03-04", t: "10:00" },
    { site: "pier", date: "2026-03-04", t: "11:00" },
  ]);
});

test("partitions that contradict themselves are refused and nothing is loaded", async () => {
  const [, first] = await load({ [TEN]: [row("10:00:00")] });
  const warehouse = join(first, "warehouse.duckdb");
  await assert.rejects(
    load({ [TEN]: [row("11:00:00")] }, { warehouse }),
    /row of pier at 2026-03-04T11:00:00Z, which belongs to another partition/,
  );
  await assert.rejects(
    load({ [TEN]: [row("10:10:00"), row("10:10:00", 5)] }, { warehouse }),
    /pier-01 has two readings at 2026-03-04T10:10:00Z/,
  );
  await assert.rejects(
    load({ [TEN]: [row("10:10:00"), "oops,pier-01,pier,1,2,3,4"] }, { warehouse }),
    /oops/,
  );
  await assert.rejects(load({ [TEN]: [row("10:10:00").replace("4.1", "")] }, { warehouse }), /temperature_c/);
  assert.deepEqual(
    await query(
      join(root, `run-${runs}`, "outputs", "warehouse.duckdb"),
      "SELECT count(*)::INTEGER AS n FROM readings",
    ),
    [{ n: 1 }],
  );
});

test("inputs and parameters that make no sense are named", async () => {
  await assert.rejects(load({}), /input partitions has no files/);
  await assert.rejects(load({ "notes.csv": [] }), /notes\.csv is not a partition/);
  await assert.rejects(
    load({ [TEN]: [] }, { parameters: { asOf: "yesterday" } }),
    /parameter asOf: "yesterday"/,
  );
  await assert.rejects(load({ [TEN]: [] }, { parameters: { threads: 0 } }), /parameter threads: 0/);
  await assert.rejects(load({ [TEN]: [] }, { parameters: { asof: null } }), /unknown parameter asof/);
});

test("a cancelled run stops", async () => {
  await assert.rejects(load({ [TEN]: [row("10:00:00")] }, { signal: AbortSignal.abort() }), {
    name: "AbortError",
  });
});
