import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Partitions } from "./partitions.ts";
import { HEADER, parseFileName, parseLine, Rejected } from "./reading.ts";
import type { Reject } from "./rejects.ts";

/** Paths of all files below the inbox, sorted: what is read first does not depend on the file system. */
export async function listInbox(inbox: string): Promise<string[]> {
  const entries = await readdir(inbox, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return files.sort();
}

export interface FileOutcome {
  /** Lines after the header, without empty ones. */
  readonly lines: number;
  readonly rejects: readonly Reject[];
}

/** Adds the file's valid rows to the partitions. `shown` is what the rejects call the file. */
export async function readInstrumentFile(
  path: string,
  shown: string,
  partitions: Partitions,
): Promise<FileOutcome> {
  const text = await readFile(path, "utf8");
  const [header = "", ...lines] = text.replace(/^\uFEFF/, "").split(/\r?\n/);
  const filled = lines.filter((line) => line !== "").length;
  const name = attempt(() => parseFileName(shown.slice(shown.lastIndexOf("/") + 1)));
  if (name instanceof Rejected) {
    return { lines: filled, rejects: [{ file: shown, line: 0, cause: name, content: "" }] };
  }
  if (header !== HEADER) {
    const cause = new Rejected("header", `the header is not ${HEADER}`);
    return { lines: filled, rejects: [{ file: shown, line: 1, cause, content: header }] };
  }
  const rejects: Reject[] = [];
  for (const [index, line] of lines.entries()) {
    if (line === "") continue;
    const cause = attempt(() => {
      const reading = parseLine(line, name);
      if (!partitions.add(reading)) {
        throw new Rejected("duplicate", `${reading.instrument} has a reading for this time already`);
      }
    });
    if (cause instanceof Rejected) rejects.push({ file: shown, line: index + 2, cause, content: line });
  }
  return { lines: filled, rejects };
}

/** The value, or what was wrong with the data; any other error is a defect and goes on. */
function attempt<Value>(action: () => Value): Value | Rejected {
  try {
    return action();
  } catch (error) {
    if (error instanceof Rejected) return error;
    throw error;
  }
}
