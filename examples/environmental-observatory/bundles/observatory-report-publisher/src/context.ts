/** The part of the context given to `handler` that this bundle uses. */
export interface Context {
  readonly parameters: Readonly<Record<string, unknown>>;
  /** `plots`: a directory of SVG files; `metrics`: the metrics.json that belongs to them. */
  readonly inputs: Readonly<Record<string, string>>;
  readonly outputDir: string;
  readonly signal: AbortSignal;
  readonly logger: Logger;
  progress(fraction: number, message: string): void;
}

export interface Logger {
  info(message: string, fields?: Record<string, unknown>): void;
  warn(message: string, fields?: Record<string, unknown>): void;
}
