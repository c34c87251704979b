/** The part of the context given to `handler` that this bundle uses. */
export interface Context {
  readonly parameters: Readonly<Record<string, unknown>>;
  readonly outputDir: string;
  readonly signal: AbortSignal;
  readonly logger: Logger;
  progress(fraction: number, message: string): void;
}

export interface Logger {
  info(message: string, fields?: Record<string, unknown>): void;
}
