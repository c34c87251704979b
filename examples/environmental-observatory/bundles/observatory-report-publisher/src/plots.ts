import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";

export interface Plot {
  /** File name, such as `temperature.svg`. */
  readonly name: string;
  readonly svg: string;
  /** Its title and description, escaped as they stand in the file. */
  readonly title: string;
  readonly description: string;
}

/** Plots that come first in the report, in this order; others follow by name. */
const ORDER = ["pm25-by-site.svg", "temperature.svg", "humidity.svg"];
const NAME = /^[a-z0-9]+(?:[-_.][a-z0-9]+)*\.svg$/;
const MAX_CHARACTERS = 2_000_000;

/** What an SVG inside a page could do beyond being looked at: run, load from elsewhere, or smuggle in other markup. */
const ACTIVE: readonly [pattern: RegExp, what: string][] = [
  [/<!(?!--)/, "a document type or CDATA section"],
  [
    /<\s*(?:script|foreignObject|iframe|object|embed|image|use|a|animate\w*|set)\b/i,
    "an active or loading element",
  ],
  [/\son[a-z]+\s*=/i, "an event handler"],
  [/\s(?:xlink:)?(?:href|src)\s*=\s*["']?(?!["']?#)/i, "a reference to elsewhere"],
  [/@import|url\(\s*['"]?(?!#)/i, "a style that loads"],
];

/** Reads all plots of the directory. Throws an Error if there are none, or if one is not safe to put into a page. */
export async function readPlots(directory: string): Promise<Plot[]> {
  const names = (await readdir(directory)).filter((name) => name.endsWith(".svg")).sort(byOrder);
  if (names.length === 0)
    throw new Error("input plots has no .svg file; expected the plots of a visualization");
  return Promise.all(
    names.map(async (name) => parsePlot(name, await readFile(join(directory, name), "utf8"))),
  );
}

export function parsePlot(name: string, text: string): Plot {
  if (!NAME.test(name))
    throw new Error(
      `input plots: ${JSON.stringify(name)} is no plain file name (lower-case letters, digits, hyphens)`,
    );
  if (text.length > MAX_CHARACTERS)
    throw new Error(
      `input plots: ${name} has ${text.length} characters; at most ${MAX_CHARACTERS} are put into a page`,
    );
  const svg = text.replace(/^\uFEFF?\s*<\?xml[^>]*\?>/, "").trim();
  if (!/^<svg\s/.test(svg) || !svg.endsWith("</svg>"))
    throw new Error(`input plots: ${name} is not an SVG document`);
  const active = ACTIVE.find(([pattern]) => pattern.test(svg));
  if (active) throw new Error(`input plots: ${name} holds ${active[1]}, which a report must not contain`);
  const title = /<title[^>]*>([^<]*)<\/title>/.exec(svg)?.[1] ?? name;
  const description = /<desc[^>]*>([^<]*)<\/desc>/.exec(svg)?.[1] ?? "";
  return { name, svg, title, description };
}

function byOrder(left: string, right: string): number {
  const rank = (name: string): number => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return rank(left) - rank(right) || (left < right ? -1 : 1);
}
