import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { handler, type Result } from "../src/index.ts";
import { HEADER } from "../src/reading.ts";

let root = "";

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "normalizer-"));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

async function normalize(
  files: Record<string, string>,
  parameters: Record<string, unknown> = { maxRejectShare: 1 },
  signal = new AbortController().signal,
): Promise<Result> {
  const inbox = join(root, "inbox");
  const outputDir = join(root, "outputs");
  await mkdir(inbox, { recursive: true });
  await mkdir(outputDir, { recursive: true });
  for (const [name, text] of Object.entries(files)) await writeFile(join(inbox, name), text);
  const logger = { info: () => {}, warn: () => {} };
  return handler({ parameters, inputs: { inbox }, outputDir, signal, logger, progress: () => {} });
}

function csv(...lines: string[]): string {
  return `${[HEADER, ...lines].join("\n")}\n`;
}

async function rejects(): Promise<string[]> {
  const text = await readFile(join(root, "outputs", "rejects.csv"), "utf8");
  return text.trimEnd().split("\n").slice(1);
}

const GOOD = "2026-03-04T10:00:00Z,pier-01,pier,4.10,81.0,9.5,12.60";

test("rows are sorted into partitions by site, date and hour, by time and then instrument", async () => {
  const result = await normalize({
    "instrument_pier-02_202603042300.csv": csv(
      "2026-03-04T23:50:00Z,pier-02,pier,3.00,80.0,8.0,12.50",
      "2026-03-04T23:00:00Z,pier-02,pier,3.50,79.0,8.5,12.50",
    ),
    "instrument_pier-01_202603042300.csv": csv("2026-03-04T23:50:00Z,pier-01,pier,3.10,80.5,8.1,12.40"),
    "instrument_pier-01_202603050000.csv": csv("2026-03-05T00:10:00Z,pier-01,pier,2.90,81.5,7.9,12.40"),
    "instrument_dune-01_202603042300.csv": csv("2026-03-04T23:20:00Z,dune-01,dune,1.00,90.0,4.0,12.90"),
  });
  assert.deepEqual(
    (await readdir(join(root, "outputs", "partitions"), { recursive: true }))
      .filter((path) => path.endsWith(".csv"))
      .sort(),
    [
      "site=dune/date=2026-03-04/hour=23.csv",
      "site=pier/date=2026-03-04/hour=23.csv",
      "site=pier/date=2026-03-05/hour=00.csv",
    ],
  );
  assert.equal(
    await readFile(join(root, "outputs/partitions/site=pier/date=2026-03-04/hour=23.csv"), "utf8"),
    csv(
      "2026-03-04T23:00:00Z,pier-02,pier,3.50,79.0,8.5,12.50",
      "2026-03-04T23:50:00Z,pier-01,pier,3.10,80.5,8.1,12.40",
      "2026-03-04T23:50:00Z,pier-02,pier,3.00,80.0,8.0,12.50",
    ),
  );
  assert.deepEqual(result, {
    files: 4,
    lines: 5,
    rows: 5,
    rejected: 0,
    rejectsByReason: {},
    minute: "2026-03-05T00:10:00.000Z",
    partitionCount: 3,
    partitions: [
      { site: "dune", date: "2026-03-04", hours: 1, rows: 1 },
      { site: "pier", date: "2026-03-04", hours: 1, rows: 3 },
      { site: "pier", date: "2026-03-05", hours: 1, rows: 1 },
    ],
  });
  assert.deepEqual(await rejects(), []);
});

const BAD_LINES: [reason: string, line: string][] = [
  ["column_count", "2026-03-04T10:10:00Z,pier-01,pi"],
  ["column_count", `${GOOD},extra`],
  ["timestamp", "2026-03-04 10:10:00,pier-01,pier,4.10,81.0,9.5,12.60"],
  ["timestamp", "2026-02-30T10:10:00Z,pier-01,pier,4.10,81.0,9.5,12.60"],
  ["timestamp", "2026-03-04T10:10:00+01:00,pier-01,pier,4.10,81.0,9.5,12.60"],
  ["outside_file_hour", "1980-01-06T00:00:00Z,pier-01,pier,4.10,81.0,9.5,12.60"],
  ["outside_file_hour", "2026-03-04T11:00:00Z,pier-01,pier,4.10,81.0,9.5,12.60"],
  ["instrument", "2026-03-04T10:10:00Z,pier-09,pier,4.10,81.0,9.5,12.60"],
  ["site", "2026-03-04T10:10:00Z,pier-01,../pier,4.10,81.0,9.5,12.60"],
  ["not_a_number", "2026-03-04T10:10:00Z,pier-01,pier,4.10,81.0,NaN,12.60"],
  ["not_a_number", "2026-03-04T10:10:00Z,pier-01,pier,,81.0,9.5,12.60"],
  ["not_a_number", "2026-03-04T10:10:00Z,pier-01,pier,0x10,81.0,9.5,12.60"],
  ["out_of_range", "2026-03-04T10:10:00Z,pier-01,pier,-999.00,81.0,9.5,12.60"],
  ["out_of_range", "2026-03-04T10:10:00Z,pier-01,pier,4.10,138.6,9.5,12.60"],
  ["out_of_range", "2026-03-04T10:10:00Z,pier-01,pier,4.10,81.0,-1.0,12.60"],
  ["out_of_range", "2026-03-04T10:10:00Z,pier-01,pier,4.10,81.0,9.5,0.00"],
  ["duplicate", GOOD],
  ["duplicate", "2026-03-04T10:00:00Z,pier-01,pier,9.90,50.0,1.0,12.00"],
];

for (const [reason, line] of BAD_LINES) {
  test(`${line} is rejected for its ${reason}`, async () => {
    const result = await normalize({ "instrument_pier-01_202603041000.csv": csv(GOOD, line) });
    assert.equal(result.rows, 1);
    assert.deepEqual(result.rejectsByReason, { [reason]: 1 });
    const [entry = ""] = await rejects();
    assert.ok(entry.startsWith(`instrument_pier-01_202603041000.csv,3,${reason},`), entry);
    assert.ok(entry.endsWith(`"${line}"`), entry);
  });
}

test("a file is rejected as a whole for its name or its header", async () => {
  const result = await normalize({
    "instrument_pier-01_202603041000.csv": csv(GOOD),
    "instrument_pier-01_202613041000.csv": csv(GOOD),
    "notes.txt": "hello",
    "instrument_pier-02_202603041000.csv": "timestamp;site\n1;2\n",
  });
  assert.deepEqual(result.rejectsByReason, { file_name: 2, header: 1 });
  assert.equal(result.rows, 1);
  assert.match((await rejects())[1]!, /^instrument_pier-02_202603041000\.csv,1,header,.*,timestamp;site$/);
});

test("a byte order mark, carriage returns and empty lines do no harm", async () => {
  const text = `\uFEFF${csv(GOOD, "", "")}`.replaceAll("\n", "\r\n");
  const result = await normalize({ "instrument_pier-01_202603041000.csv": text });
  assert.deepEqual([result.rows, result.rejected], [1, 0]);
});

test("quotes in a rejected line are doubled", async () => {
  await normalize({ "instrument_pier-01_202603041000.csv": csv(GOOD, 'say "hi"') });
  assert.match((await rejects())[0]!, /,"say ""hi"""$/);
});

test("too large a share of rejects fails the run and says why", async () => {
  const files = { "instrument_pier-01_202603041000.csv": csv(GOOD, "x", "y", "z") };
  await assert.rejects(
    normalize(files, {}),
    /3 of 4 lines are unusable \(column_count 3\), more than maxRejectShare 0\.5 allows; the first: .*csv, line 3: 1 columns/,
  );
  assert.equal((await rejects()).length, 3);
  assert.equal((await normalize(files, { maxRejectShare: 0.75 })).rows, 1);
});

test("an inbox without anything usable fails the run", async () => {
  await assert.rejects(normalize({}), /the inbox has no files/);
  await assert.rejects(
    normalize({ "notes.txt": "hello" }),
    /none of the 0 lines in 1 files is usable; the first: notes\.txt, line 0: /,
  );
});

test("wrong parameters, a missing input and a cancelled run are refused", async () => {
  await assert.rejects(
    normalize({}, { maxRejectShare: "half" }),
    /parameter maxRejectShare: "half" is not a number/,
  );
  await assert.rejects(normalize({}, { rejectShare: 1 }), /unknown parameter rejectShare/);
  await assert.rejects(normalize({ a: "" }, {}, AbortSignal.abort()), { name: "AbortError" });
  const logger = { info: () => {}, warn: () => {} };
  const context = {
    parameters: {},
    inputs: {},
    outputDir: root,
    signal: new AbortController().signal,
    logger,
    progress: () => {},
  };
  await assert.rejects(handler(context), /input inbox is missing/);
});
