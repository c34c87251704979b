export interface Parameters {
  /** Time of the newest reading, as the normalizer reports it. */
  readonly asOf: string | null;
  readonly threads: number;
}

const KNOWN = ["asOf", "threads"];
const TIME = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d{1,3})?)?Z$/;

/** Fills in defaults (an absent or null value) and throws an Error that names the parameter, what it got and what it wants. */
export function parseParameters(given: Readonly<Record<string, unknown>>): Parameters {
  const unknown = Object.keys(given).filter((key) => !KNOWN.includes(key));
  if (unknown.length > 0) {
    throw new Error(`unknown parameter ${unknown.join(", ")}; known are ${KNOWN.join(", ")}`);
  }
  const asOf = given["asOf"] ?? null;
  if (asOf !== null && !(typeof asOf === "string" && TIME.test(asOf) && !Number.isNaN(Date.parse(asOf)))) {
    throw new Error(
      `parameter asOf: ${JSON.stringify(asOf)} is not a time in UTC such as 2026-03-04T10:50:00Z`,
    );
  }
  const threads = given["threads"] ?? 2;
  if (typeof threads !== "number" || !Number.isInteger(threads) || threads < 1 || threads > 16) {
    throw new Error(`parameter threads: ${JSON.stringify(threads)} is not a whole number from 1 to 16`);
  }
  return { asOf, threads };
}
