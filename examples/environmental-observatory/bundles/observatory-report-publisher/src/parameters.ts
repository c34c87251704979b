export interface Parameters {
  /** Hourly mean in µg/m³ above which a site is in alert; null: the one the plots were drawn with. */
  readonly pm25Threshold: number | null;
  readonly title: string;
}

const KNOWN = ["pm25Threshold", "title"];

/** Fills in defaults (an absent or null value) and throws an Error that names the parameter, what it got and what it wants. */
export function parseParameters(given: Readonly<Record<string, unknown>>): Parameters {
  const unknown = Object.keys(given).filter((key) => !KNOWN.includes(key));
  if (unknown.length > 0) {
    throw new Error(`unknown parameter ${unknown.join(", ")}; known are ${KNOWN.join(", ")}`);
  }
  const pm25Threshold = given["pm25Threshold"] ?? null;
  if (
    pm25Threshold !== null &&
    !(typeof pm25Threshold === "number" && pm25Threshold > 0 && Number.isFinite(pm25Threshold))
  ) {
    throw new Error(
      `parameter pm25Threshold: ${JSON.stringify(pm25Threshold)} is not a number of µg/m³ above 0`,
    );
  }
  const title = given["title"] ?? "Environmental observatory: daily report";
  if (typeof title !== "string" || title.trim() === "" || title.length > 120) {
    throw new Error(`parameter title: ${JSON.stringify(title)} is not a text of 1 to 120 characters`);
  }
  return { pm25Threshold, title };
}
