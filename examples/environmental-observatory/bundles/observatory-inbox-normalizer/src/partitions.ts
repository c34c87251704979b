import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { formatReading, HEADER, type Reading } from "./reading.ts";

export interface DaySummary {
  readonly site: string;
  readonly date: string;
  readonly hours: number;
  readonly rows: number;
}

/** Readings by site, date and hour; the first reading of an instrument at a time wins. */
export class Partitions {
  private readonly byPath = new Map<string, Map<string, Reading>>();
  private rowCount = 0;
  private newest: number | undefined;

  /** False, and nothing is kept, if this instrument has a reading at this time already. */
  add(reading: Reading): boolean {
    const path = partitionPath(reading);
    const rows = this.byPath.get(path) ?? new Map<string, Reading>();
    const key = `${reading.time}/${reading.instrument}`;
    if (rows.has(key)) return false;
    rows.set(key, reading);
    this.byPath.set(path, rows);
    this.rowCount += 1;
    this.newest = Math.max(this.newest ?? reading.time, reading.time);
    return true;
  }

  get rows(): number {
    return this.rowCount;
  }

  get size(): number {
    return this.byPath.size;
  }

  /** Time of the newest reading, milliseconds since 1970. */
  get newestTime(): number | undefined {
    return this.newest;
  }

  /** One file per partition, rows by time and then by instrument. */
  async write(directory: string, signal: AbortSignal): Promise<void> {
    for (const [path, readings] of this.byPath) {
      signal.throwIfAborted();
      const file = join(directory, path);
      await mkdir(join(file, ".."), { recursive: true });
      const rows = [...readings.values()].sort(byTimeAndInstrument).map(formatReading);
      await writeFile(file, `${[HEADER, ...rows].join("\n")}\n`);
    }
  }

  /** By site and date, sorted; hours is the number of partitions. */
  summary(): DaySummary[] {
    const days = new Map<string, DaySummary>();
    for (const [path, readings] of this.byPath) {
      const [site = "", date = ""] = path.split("/").map((part) => part.slice(part.indexOf("=") + 1));
      const day = days.get(`${site}/${date}`) ?? { site, date, hours: 0, rows: 0 };
      days.set(`${site}/${date}`, { ...day, hours: day.hours + 1, rows: day.rows + readings.size });
    }
    return [...days.entries()].sort(([left], [right]) => (left < right ? -1 : 1)).map(([, day]) => day);
  }
}

function partitionPath({ site, time }: Reading): string {
  const iso = new Date(time).toISOString();
  return `site=${site}/date=${iso.slice(0, 10)}/hour=${iso.slice(11, 13)}.csv`;
}

function byTimeAndInstrument(left: Reading, right: Reading): number {
  return left.time - right.time || (left.instrument < right.instrument ? -1 : 1);
}
