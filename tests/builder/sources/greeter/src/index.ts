// @ts-expect-error: the package has no types of its own
import ms from 'ms';

interface Context {
  parameters: { name?: string; milliseconds?: number };
}

export function handler({ parameters }: Context): { greeting: string } {
  const duration: string = ms(parameters.milliseconds ?? 60_000, { long: true });
  return { greeting: `Hello, ${parameters.name ?? 'world'}, for ${duration}` };
}
