/**
 * Colours for a light and a dark surface. The series follow Okabe and Ito's palette, which people with any of the common
 * colour vision deficiencies can tell apart, darkened or lightened where a line would not stand out from the surface.
 */

interface Colours {
  readonly surface: string;
  readonly ink: string;
  readonly muted: string;
  readonly grid: string;
  readonly axis: string;
  readonly series: readonly string[];
}

const LIGHT: Colours = {
  surface: "#ffffff",
  ink: "#1a212b",
  muted: "#5a6572",
  grid: "#e6e9ed",
  axis: "#9aa4af",
  series: ["#0072b2", "#d55e00", "#00896a", "#b0568c", "#a87400", "#3f8fc4", "#4d5761"],
};

const DARK: Colours = {
  surface: "#161b22",
  ink: "#e8ecf1",
  muted: "#a3aebb",
  grid: "#2a323c",
  axis: "#66717d",
  series: ["#5ab0ec", "#f58b45", "#2fc79b", "#e39cc6", "#e8b640", "#97d2f4", "#c3cad2"],
};

/** Beyond the seven colours the lines are told apart by their dashes. */
const DASHES = [undefined, "7 4", "2 3"];

export const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";

/** Attributes for the light surface; the class lets {@link DARK_STYLE} say otherwise. */
export function fill(role: Exclude<keyof Colours, "series">): { class: string; fill: string } {
  return { class: `plot-${role}`, fill: LIGHT[role] };
}

export function stroke(role: Exclude<keyof Colours, "series">): { class: string; stroke: string } {
  return { class: `plot-${role}-line`, stroke: LIGHT[role] };
}

export function seriesFill(index: number): { class: string; fill: string } {
  const colour = index % LIGHT.series.length;
  return { class: `plot-series-${colour}`, fill: LIGHT.series[colour]! };
}

export function seriesStroke(index: number): {
  class: string;
  stroke: string;
  "stroke-dasharray": string | undefined;
} {
  const colour = index % LIGHT.series.length;
  const dashes = DASHES[Math.floor(index / LIGHT.series.length) % DASHES.length];
  return { class: `plot-series-${colour}-line`, stroke: LIGHT.series[colour]!, "stroke-dasharray": dashes };
}

/** Text that crosses lines is outlined in the colour of the surface. */
export function halo(role: "ink" | "muted"): Record<string, string | number> {
  return {
    class: `plot-${role} plot-surface-line`,
    fill: LIGHT[role],
    stroke: LIGHT.surface,
    "stroke-width": 4,
    "stroke-linejoin": "round",
    "paint-order": "stroke",
  };
}

/** For screens in dark mode; prints and programs that know no style sheets keep the light colours. */
export const DARK_STYLE = `@media screen and (prefers-color-scheme: dark) { ${darkRules().join(" ")} }`;

function darkRules(): string[] {
  const roles = (["surface", "ink", "muted", "grid", "axis"] as const).map((role): [string, string] => [
    role,
    DARK[role],
  ]);
  const series = DARK.series.map((colour, index): [string, string] => [`series-${index}`, colour]);
  return [...roles, ...series].flatMap(([name, colour]) => [
    `.plot .plot-${name} { fill: ${colour}; }`,
    `.plot .plot-${name}-line { stroke: ${colour}; }`,
  ]);
}
