import { writeFile } from "node:fs/promises";
import type { Rejected } from "./reading.ts";

export interface Reject {
  /** Path below the inbox. */
  readonly file: string;
  /** Counted from 1, which is the header; 0 stands for the whole file. */
  readonly line: number;
  readonly cause: Rejected;
  readonly content: string;
}

export async function writeRejects(path: string, rejects: readonly Reject[]): Promise<void> {
  const rows = rejects.map(({ file, line, cause, content }) =>
    [file, String(line), cause.reason, cause.message, content].map(quote).join(","),
  );
  await writeFile(path, `${["file,line,reason,detail,content", ...rows].join("\n")}\n`);
}

export function countByReason(rejects: readonly Reject[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { cause } of rejects) counts[cause.reason] = (counts[cause.reason] ?? 0) + 1;
  return counts;
}

/** Quotes as RFC 4180 does, only where it is needed. */
function quote(field: string): string {
  return /[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field;
}
