import { readdir } from "node:fs/promises";
import { join, relative, sep } from "node:path";

const PARTITION = /^site=[a-z0-9]+(?:-[a-z0-9]+)*\/date=\d{4}-\d{2}-\d{2}\/hour=\d{2}\.csv$/;

/** Paths of the partition files below the directory, sorted. Throws an Error if there are none, or if another file is among them. */
export async function listPartitions(directory: string): Promise<string[]> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const files = entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
  const stray = files
    .map((file) => relative(directory, file).split(sep).join("/"))
    .find((path) => !PARTITION.test(path));
  if (stray !== undefined) {
    throw new Error(
      `input partitions: ${stray} is not a partition; expected site=<site>/date=<YYYY-MM-DD>/hour=<HH>.csv`,
    );
  }
  if (files.length === 0)
    throw new Error("input partitions has no files; expected site=<site>/date=<YYYY-MM-DD>/hour=<HH>.csv");
  return files;
}
