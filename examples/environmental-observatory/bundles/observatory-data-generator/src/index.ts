import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Context } from "./context.ts";
import { instrumentFile, instrumentId } from "./instrument.ts";
import { parseParameters } from "./parameters.ts";
import { Weather } from "./weather.ts";

const HOUR = 3_600_000;

export interface Result {
  readonly files: number;
  readonly rows: number;
  readonly faults: number;
  readonly instruments: number;
  readonly sites: readonly string[];
  /** First hour and the end of the last one: [from, to). */
  readonly from: string;
  readonly to: string;
}

/** Writes `inbox/instrument_<id>_<YYYYMMDDHHmm>.csv` below the output directory, one file per instrument and hour. */
export async function handler(context: Context): Promise<Result> {
  const parameters = parseParameters(context.parameters);
  const weather = new Weather(parameters.seed, parameters.sites);
  const inbox = join(context.outputDir, "inbox");
  await mkdir(inbox, { recursive: true });

  let files = 0;
  let rows = 0;
  let faults = 0;
  for (let index = 0; index < parameters.hours; index += 1) {
    context.signal.throwIfAborted();
    const hour = parameters.start + index * HOUR;
    for (const site of parameters.sites) {
      for (let instrument = 0; instrument < parameters.instrumentsPerSite; instrument += 1) {
        const file = instrumentFile(weather, site, instrumentId(site, instrument), hour, parameters);
        await writeFile(join(inbox, file.name), file.text);
        files += 1;
        rows += file.lines;
        faults += file.faults;
      }
    }
    context.progress((index + 1) / parameters.hours, `${index + 1} of ${parameters.hours} hours`);
  }

  const result: Result = {
    files,
    rows,
    faults,
    instruments: parameters.sites.length * parameters.instrumentsPerSite,
    sites: parameters.sites.map((site) => site.name),
    from: new Date(parameters.start).toISOString(),
    to: new Date(parameters.start + parameters.hours * HOUR).toISOString(),
  };
  context.logger.info("inbox written", { files, rows, faults, from: result.from, to: result.to });
  return result;
}
