/** The part of the context given to `handler` that this bundle uses. */
export interface Context {
  readonly parameters: Readonly<Record<string, unknown>>;
  /** `partitions`: the directory of partitions; `warehouse`: an earlier warehouse.duckdb, if there is one. */
  readonly inputs: Readonly<Record<string, string>>;
  readonly outputDir: string;
  readonly workDir: string;
  readonly run: { readonly id: string };
  readonly signal: AbortSignal;
  readonly logger: Logger;
  progress(fraction: number, message: string): void;
}

export interface Logger {
  info(message: string, fields?: Record<string, unknown>): void;
}
