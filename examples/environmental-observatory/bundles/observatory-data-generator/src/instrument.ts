import type { Parameters, Site } from "./parameters.ts";
import { hash32, uniform } from "./random.ts";
import type { Weather } from "./weather.ts";

export const HEADER =
  "timestamp,instrument_id,site,temperature_c,relative_humidity_pct,pm2_5_ug_m3,battery_voltage";

const MINUTE = 60_000;

export interface InstrumentFile {
  readonly name: string;
  readonly text: string;
  /** Lines after the header. */
  readonly lines: number;
  /** How many of them are garbled or repeated. */
  readonly faults: number;
}

export function instrumentId(site: Site, index: number): string {
  return `${site.name}-${String(index + 1).padStart(2, "0")}`;
}

/** The file an instrument drops for the hour that begins at `hour` (milliseconds since 1970). */
export function instrumentFile(
  weather: Weather,
  site: Site,
  id: string,
  hour: number,
  { seed, rowsPerFile, faultRate }: Pick<Parameters, "seed" | "rowsPerFile" | "faultRate">,
): InstrumentFile {
  const lines: string[] = [];
  let faults = 0;
  for (let row = 0; row < rowsPerFile; row += 1) {
    const time = hour + (row * 60 * MINUTE) / rowsPerFile;
    const line = instrumentLine(weather, site, id, time);
    const key = `${seed}/${id}/${time}/fault`;
    if (uniform(key) < faultRate) {
      faults += 1;
      lines.push(...garble(line, key));
    } else {
      lines.push(line);
    }
  }
  const stamp = isoSeconds(hour).replace(/[-T:]/g, "").slice(0, 12);
  return {
    name: `instrument_${id}_${stamp}.csv`,
    text: `${[HEADER, ...lines].join("\n")}\n`,
    lines: lines.length,
    faults,
  };
}

function instrumentLine(weather: Weather, site: Site, id: string, time: number): string {
  const reading = weather.read(site, id, time);
  return [
    isoSeconds(time),
    id,
    site.name,
    reading.temperatureC.toFixed(2),
    reading.relativeHumidityPct.toFixed(1),
    reading.pm25UgM3.toFixed(1),
    reading.batteryVoltage.toFixed(2),
  ].join(",");
}

/** What goes wrong in the field, one kind by the key: one line in, the lines that end up in the file out. */
function garble(line: string, key: string): string[] {
  const fields = line.split(",");
  const replaced = (column: number, value: string): string => fields.with(column, value).join(",");
  const kinds: (() => string[])[] = [
    /* power lost while writing */ () => [line.slice(0, Math.floor(line.length * 0.6))],
    /* sensor unplugged */ () => [replaced(3, "-999.00")],
    /* sensor warming up */ () => [replaced(5, "NaN")],
    /* clock fell back to the epoch of GPS */ () => [replaced(0, "1980-01-06T00:00:00Z")],
    /* condensation on the sensor */ () => [replaced(4, "138.6")],
    /* written again after a restart */ () => [line, line],
  ];
  return kinds[hash32(`${key}/kind`) % kinds.length]!();
}

function isoSeconds(time: number): string {
  return `${new Date(time).toISOString().slice(0, 19)}Z`;
}
