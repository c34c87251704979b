import { join, relative, sep } from "node:path";
import type { Context } from "./context.ts";
import { listInbox, readInstrumentFile } from "./inbox.ts";
import { type DaySummary, Partitions } from "./partitions.ts";
import { countByReason, type Reject, writeRejects } from "./rejects.ts";

export interface Result {
  readonly files: number;
  readonly lines: number;
  readonly rows: number;
  /** Entries in rejects.csv: a line each, or a file that is unusable as a whole. */
  readonly rejected: number;
  readonly rejectsByReason: Readonly<Record<string, number>>;
  /** Time of the newest reading. */
  readonly minute: string;
  readonly partitionCount: number;
  readonly partitions: readonly DaySummary[];
}

/**
 * Sorts the valid rows of the input `inbox` into `partitions/site=<site>/date=<YYYY-MM-DD>/hour=<HH>.csv`, and lists what it
 * can't use in `rejects.csv`. Fails if nothing is usable, or if more than `maxRejectShare` of the lines is not.
 */
export async function handler(context: Context): Promise<Result> {
  const maxRejectShare = parseMaxRejectShare(context.parameters);
  const inbox = context.inputs["inbox"];
  if (inbox === undefined)
    throw new Error("input inbox is missing; expected a directory of instrument files");

  const partitions = new Partitions();
  const rejects: Reject[] = [];
  const files = await listInbox(inbox);
  let lines = 0;
  for (const [index, path] of files.entries()) {
    context.signal.throwIfAborted();
    const outcome = await readInstrumentFile(path, relative(inbox, path).split(sep).join("/"), partitions);
    lines += outcome.lines;
    rejects.push(...outcome.rejects);
    if (index % 50 === 49)
      context.progress((0.8 * (index + 1)) / files.length, `${index + 1} of ${files.length} files read`);
  }
  context.progress(0.8, `${partitions.rows} rows in ${partitions.size} partitions`);

  await writeRejects(join(context.outputDir, "rejects.csv"), rejects);
  const rejectsByReason = countByReason(rejects);
  if (rejects.length > 0)
    context.logger.warn("lines rejected", { rejected: rejects.length, ...rejectsByReason });
  checkQuality(files.length, lines, partitions.rows, rejects, maxRejectShare);

  await partitions.write(join(context.outputDir, "partitions"), context.signal);
  context.progress(1, `${partitions.size} partitions written`);
  context.logger.info("inbox normalized", {
    files: files.length,
    rows: partitions.rows,
    partitions: partitions.size,
  });
  return {
    files: files.length,
    lines,
    rows: partitions.rows,
    rejected: rejects.length,
    rejectsByReason,
    minute: new Date(partitions.newestTime!).toISOString(),
    partitionCount: partitions.size,
    partitions: partitions.summary(),
  };
}

function parseMaxRejectShare(parameters: Readonly<Record<string, unknown>>): number {
  const unknown = Object.keys(parameters).filter((key) => key !== "maxRejectShare");
  if (unknown.length > 0) throw new Error(`unknown parameter ${unknown.join(", ")}; known is maxRejectShare`);
  const value = parameters["maxRejectShare"] ?? 0.5;
  if (typeof value !== "number" || !(value >= 0 && value <= 1)) {
    throw new Error(`parameter maxRejectShare: ${JSON.stringify(value)} is not a number from 0 to 1`);
  }
  return value;
}

/** Lines of a rejected file count as rejected, though rejects.csv has one entry for all of them. */
function checkQuality(
  files: number,
  lines: number,
  rows: number,
  rejects: readonly Reject[],
  maxRejectShare: number,
): void {
  if (files === 0) throw new Error("the inbox has no files; expected instrument_<id>_<YYYYMMDDHHmm>.csv");
  const first = rejects[0];
  const example = first ? `; the first: ${first.file}, line ${first.line}: ${first.cause.message}` : "";
  if (rows === 0) throw new Error(`none of the ${lines} lines in ${files} files is usable${example}`);
  if (1 - rows / lines > maxRejectShare) {
    const reasons = Object.entries(countByReason(rejects)).map(([reason, count]) => `${reason} ${count}`);
    throw new Error(
      `${lines - rows} of ${lines} lines are unusable (${reasons.join(", ")}), more than maxRejectShare ${maxRejectShare} allows${example}. ` +
        "Mend the instrument, take its files out of the inbox, or raise the share",
    );
  }
}
