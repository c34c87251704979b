import { ascending, greatest } from "d3-array";
import { scaleLinear, type ScaleLinear, scaleUtc, type ScaleTime } from "d3-scale";
import {
  area,
  curveMonotoneX,
  line,
  symbol,
  symbolCircle,
  symbolDiamond,
  symbolSquare,
  symbolTriangle,
} from "d3-shape";
import { utcFormat } from "d3-time-format";
import { signed, spread } from "./labels.ts";
import { element, escapeXml, textElement } from "./svg.ts";
import { DARK_STYLE, fill, FONT, halo, seriesFill, seriesStroke, stroke } from "./theme.ts";
import type { Window } from "./warehouse.ts";

export const WIDTH = 900;
export const HEIGHT = 420;
const PLOT = { left: 58, right: WIDTH - 168, top: 96, bottom: HEIGHT - 52 };
const SYMBOLS = [symbolCircle, symbolSquare, symbolTriangle, symbolDiamond];
const MAX_LABEL = 17;
const HOUR = 3_600_000;

export interface Point {
  /** Where on the time axis, milliseconds since 1970. */
  readonly time: number;
  /** Undefined where there is no data: the line is interrupted. */
  readonly value: number | undefined;
  readonly low?: number | undefined;
  readonly high?: number | undefined;
}

export interface Series {
  readonly name: string;
  readonly points: readonly Point[];
  /** Finer values that are drawn faintly behind. */
  readonly detail?: readonly Point[];
}

export interface ChartSpec {
  /** Unique among the charts of a page. */
  readonly id: string;
  readonly title: string;
  readonly subtitle: string;
  /** What the chart shows, for those who can't see it. */
  readonly description: string;
  /** Name of the quantity with its unit, such as `Temperature (°C)`. */
  readonly axisTitle: string;
  readonly unit: string;
  readonly window: Window;
  /** Ends of the value axis before they are rounded to ticks. */
  readonly domain: readonly [low: number, high: number];
  readonly series: readonly Series[];
  /** Marks each value with a symbol. */
  readonly markers?: boolean;
  readonly threshold?: { readonly value: number; readonly label: string };
}

interface Scales {
  readonly x: ScaleTime<number, number>;
  readonly y: ScaleLinear<number, number>;
}

/** A line chart over time, with the names of the series beside their ends, as a complete SVG document. */
export function lineChart(spec: ChartSpec): string {
  const scales: Scales = {
    x: scaleUtc([spec.window.from, spec.window.to], [PLOT.left, PLOT.right]),
    y: scaleLinear(spec.domain, [PLOT.bottom, PLOT.top]).nice(6),
  };
  const above = `${spec.id}-above-threshold`;
  return `${element(
    "svg",
    {
      xmlns: "http://www.w3.org/2000/svg",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      width: WIDTH,
      height: HEIGHT,
      role: "img",
      class: "plot",
      "aria-labelledby": `${spec.id}-title ${spec.id}-description`,
      "font-family": FONT,
      "font-size": 12,
    },
    element("title", { id: `${spec.id}-title` }, escapeXml(spec.title)),
    element("desc", { id: `${spec.id}-description` }, escapeXml(spec.description)),
    element("style", {}, DARK_STYLE),
    element("rect", { ...fill("surface"), width: WIDTH, height: HEIGHT, rx: 10 }),
    header(spec),
    valueAxis(spec, scales.y),
    timeAxis(spec.window, scales.x),
    spec.threshold ? exceedance(spec, scales, spec.threshold.value, above) : "",
    ...spec.series.map((series, index) => seriesGroup(series, index, scales, spec.markers ?? false)),
    spec.threshold ? thresholdLine(spec.threshold, scales.y) : "",
    spec.threshold ? peakLabel(spec, scales, spec.threshold.value) : "",
    legend(spec, scales),
  )}\n`;
}

function header(spec: ChartSpec): string {
  return [
    textElement({ ...fill("ink"), x: 24, y: 34, "font-size": 18, "font-weight": 650 }, spec.title),
    textElement({ ...fill("muted"), x: 24, y: 54, "font-size": 12.5 }, spec.subtitle),
    textElement({ ...fill("muted"), x: 24, y: 82, "font-weight": 600 }, spec.axisTitle),
  ].join("");
}

function valueAxis(spec: ChartSpec, y: Scales["y"]): string {
  const format = y.tickFormat(6);
  const ticks = y.ticks(6).map((value) =>
    [
      element("line", {
        ...stroke(value === 0 ? "axis" : "grid"),
        x1: PLOT.left,
        x2: PLOT.right,
        y1: y(value),
        y2: y(value),
      }),
      textElement(
        { ...fill("muted"), x: PLOT.left - 10, y: y(value), dy: "0.34em", "text-anchor": "end" },
        format(value),
      ),
    ].join(""),
  );
  return element("g", { class: "plot-value-axis", "aria-label": spec.axisTitle }, ...ticks);
}

function timeAxis(window: Window, x: Scales["x"]): string {
  const minutes = utcFormat("%H:%M");
  const day = utcFormat("%-d %b");
  const isMidnight = (time: Date): boolean => time.getTime() % (24 * HOUR) === 0;
  const ticks = x.ticks(8).map((time) => {
    const midnight = isMidnight(time);
    return [
      element("line", {
        ...stroke(midnight ? "axis" : "grid"),
        x1: x(time),
        x2: x(time),
        y1: PLOT.top,
        y2: PLOT.bottom,
      }),
      element("line", { ...stroke("axis"), x1: x(time), x2: x(time), y1: PLOT.bottom, y2: PLOT.bottom + 5 }),
      textElement(
        {
          ...fill(midnight ? "ink" : "muted"),
          x: x(time),
          y: PLOT.bottom + 20,
          "text-anchor": "middle",
          "font-weight": midnight ? 600 : undefined,
        },
        midnight ? day(time) : minutes(time),
      ),
    ].join("");
  });
  const middle = (x(window.from) + x(window.to)) / 2;
  return element(
    "g",
    { class: "plot-time-axis", "aria-label": "Time (UTC)" },
    ...ticks,
    element("line", { ...stroke("axis"), x1: PLOT.left, x2: PLOT.right, y1: PLOT.bottom, y2: PLOT.bottom }),
    textElement(
      { ...fill("muted"), x: middle, y: HEIGHT - 13, "text-anchor": "middle", "font-weight": 600 },
      "Time (UTC)",
    ),
  );
}

function seriesGroup(series: Series, index: number, { x, y }: Scales, markers: boolean): string {
  const through = line<Point>(
    (point) => x(point.time),
    (point) => y(point.value!),
  )
    .defined((point) => point.value !== undefined)
    .digits(2);
  const between = area<Point>(
    (point) => x(point.time),
    (point) => y(point.low!),
    (point) => y(point.high!),
  )
    .defined((point) => point.low !== undefined)
    .digits(2);
  const band = between(series.points);
  const detail = series.detail ? through(series.detail) : null;
  const path = (markers ? through.curve(curveMonotoneX) : through)(series.points);
  const shape = symbol(SYMBOLS[index % SYMBOLS.length]!, 30).digits(2)();
  const marked = series.points.filter(
    (point) => point.value !== undefined && (markers || isAlone(series.points, point)),
  );
  return element(
    "g",
    { class: "plot-series" },
    band ? element("path", { ...seriesFill(index), d: band, "fill-opacity": 0.16 }) : "",
    detail
      ? element("path", {
          ...seriesStroke(index),
          d: detail,
          fill: "none",
          "stroke-opacity": 0.32,
          "stroke-width": 1,
        })
      : "",
    path
      ? element("path", {
          ...seriesStroke(index),
          d: path,
          fill: "none",
          "stroke-width": 2,
          "stroke-linejoin": "round",
          "stroke-linecap": "round",
        })
      : "",
    ...marked.map((point) =>
      element("path", {
        ...seriesFill(index),
        d: shape!,
        transform: `translate(${x(point.time).toFixed(2)},${y(point.value!).toFixed(2)})`,
      }),
    ),
  );
}

/** A value between two gaps would not show as a line. */
function isAlone(points: readonly Point[], point: Point): boolean {
  const index = points.indexOf(point);
  return points[index - 1]?.value === undefined && points[index + 1]?.value === undefined;
}

/** The areas between the threshold and what is above it. */
function exceedance(spec: ChartSpec, { x, y }: Scales, threshold: number, id: string): string {
  const over = area<Point>(
    (point) => x(point.time),
    y(threshold),
    (point) => y(point.value!),
  )
    .defined((point) => point.value !== undefined)
    .curve(curveMonotoneX)
    .digits(2);
  const clip = element(
    "clipPath",
    { id },
    element("rect", {
      x: PLOT.left,
      y: PLOT.top,
      width: PLOT.right - PLOT.left,
      height: Math.max(0, y(threshold) - PLOT.top),
    }),
  );
  const areas = spec.series.map((series, index) => {
    const path = over(series.points);
    return path && series.points.some((point) => point.value !== undefined && point.value > threshold)
      ? element("path", { ...seriesFill(index), d: path, "fill-opacity": 0.22 })
      : "";
  });
  return clip + element("g", { "clip-path": `url(#${id})` }, ...areas);
}

function thresholdLine({ value, label }: { value: number; label: string }, y: Scales["y"]): string {
  return element(
    "g",
    { class: "plot-threshold" },
    element("line", {
      ...stroke("ink"),
      x1: PLOT.left,
      x2: PLOT.right,
      y1: y(value),
      y2: y(value),
      "stroke-width": 1.5,
      "stroke-dasharray": "6 4",
    }),
    textElement({ ...halo("ink"), x: PLOT.left + 8, y: y(value) - 7, "font-weight": 600 }, label),
  );
}

/** The highest value of all series, if it is above the threshold, with the hour that it is the mean of. */
function peakLabel(spec: ChartSpec, { x, y }: Scales, threshold: number): string {
  const points = spec.series.flatMap((series) => series.points);
  const top = greatest(points, (left, right) => ascending(left.value, right.value));
  if (top?.value === undefined || top.value <= threshold) return "";
  const hour = Math.floor(top.time / HOUR) * HOUR;
  const from = utcFormat(spec.window.to - spec.window.from > 24 * HOUR ? "%-d %b %H:%M" : "%H:%M")(
    new Date(hour),
  );
  const to = utcFormat("%H:%M")(new Date(hour + HOUR));
  const at = x(top.time);
  const anchor = at > PLOT.right - 100 ? "end" : at < PLOT.left + 100 ? "start" : "middle";
  return textElement(
    { ...halo("ink"), x: at, y: y(top.value) - 10, "text-anchor": anchor, "font-weight": 600 },
    `${signed(top.value)} ${spec.unit}, ${from}–${to}`,
  );
}

/** The name of each series and its last value, beside the end of its line. */
function legend(spec: ChartSpec, { x, y }: Scales): string {
  const entries = spec.series.flatMap((series, index) => {
    const last = series.points.findLast((point) => point.value !== undefined);
    return last ? [{ name: series.name, index, time: last.time, value: last.value! }] : [];
  });
  const gap = entries.length > 8 ? 17 : 34;
  const middles = spread(
    entries.map((entry) => y(entry.value)),
    gap,
    PLOT.top + gap / 2 - 8,
    PLOT.bottom - gap / 2 + 8,
  );
  const labels = entries.map((entry, rank) => {
    const middle = middles[rank]!;
    const left = PLOT.right + 20;
    const leader = `M${(x(entry.time) + 5).toFixed(2)},${y(entry.value).toFixed(2)}L${PLOT.right + 6},${y(entry.value).toFixed(2)}L${left - 4},${middle.toFixed(2)}`;
    const name = entry.name.length > MAX_LABEL ? `${entry.name.slice(0, MAX_LABEL - 1)}…` : entry.name;
    const value = `latest ${signed(entry.value)} ${spec.unit}`;
    const mark = symbol(SYMBOLS[entry.index % SYMBOLS.length]!, 46).digits(2)()!;
    return element(
      "g",
      {},
      element("title", {}, escapeXml(`${entry.name}: ${value}`)),
      element("path", { ...seriesStroke(entry.index), d: leader, fill: "none", "stroke-opacity": 0.55 }),
      element("path", {
        ...seriesFill(entry.index),
        d: mark,
        transform: `translate(${left + 2},${middle.toFixed(2)})`,
      }),
      textElement(
        { ...fill("ink"), x: left + 12, y: middle, dy: gap > 20 ? "-0.1em" : "0.34em", "font-weight": 600 },
        name,
      ),
      gap > 20
        ? textElement({ ...fill("muted"), x: left + 12, y: middle, dy: "1.1em", "font-size": 11.5 }, value)
        : "",
    );
  });
  return element("g", { class: "plot-legend", "aria-label": "Legend" }, ...labels);
}
