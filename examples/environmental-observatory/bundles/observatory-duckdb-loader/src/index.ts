import { copyFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Context } from "./context.ts";
import { parseParameters } from "./parameters.ts";
import { listPartitions } from "./partitions.ts";
import { Warehouse } from "./warehouse.ts";

/** Partition files that one statement reads: enough to be quick, few enough to notice a cancel. */
const BATCH = 200;

export interface Result {
  readonly rowsLoaded: number;
  readonly totalRows: number;
  readonly partitions: number;
  /** Whether the warehouse continues an earlier one. */
  readonly continued: boolean;
  readonly asOf: string | null;
  readonly duckdbVersion: string;
}

/**
 * Loads the input `partitions` into `warehouse.duckdb`, which starts as a copy of the input `warehouse` if there is one, and
 * writes the days it touched to `parquet/site=<site>/date=<YYYY-MM-DD>/`.
 */
export async function handler(context: Context): Promise<Result> {
  const { asOf, threads } = parseParameters(context.parameters);
  const { partitions: directory, warehouse: earlier } = context.inputs;
  if (directory === undefined)
    throw new Error("input partitions is missing; expected a directory of partitions");
  const files = await listPartitions(directory);

  const path = join(context.outputDir, "warehouse.duckdb");
  if (earlier !== undefined) await copyFile(earlier, path);
  const spillDirectory = join(context.workDir, "duckdb");
  await mkdir(spillDirectory, { recursive: true });
  const warehouse = await Warehouse.open(path, { threads, spillDirectory });
  try {
    for (let first = 0; first < files.length; first += BATCH) {
      context.signal.throwIfAborted();
      await warehouse.stage(files.slice(first, first + BATCH));
      const read = Math.min(first + BATCH, files.length);
      context.progress((0.6 * read) / files.length, `${read} of ${files.length} partitions read`);
    }
    context.signal.throwIfAborted();
    const rowsLoaded = await warehouse.load({ runId: context.run.id, asOf });
    context.progress(0.8, `${rowsLoaded} rows loaded`);
    context.signal.throwIfAborted();
    await warehouse.exportDays(join(context.outputDir, "parquet"));
    await warehouse.checkpoint();
    context.progress(1, "Parquet written");

    const result: Result = {
      rowsLoaded,
      totalRows: await warehouse.totalRows(),
      partitions: files.length,
      continued: earlier !== undefined,
      asOf,
      duckdbVersion: await warehouse.duckdbVersion(),
    };
    context.logger.info("partitions loaded", { ...result });
    return result;
  } finally {
    warehouse.close();
  }
}
