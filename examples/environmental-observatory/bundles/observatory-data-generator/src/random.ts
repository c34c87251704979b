/**
 * Random numbers that are a pure function of a key. A value never depends on which values were drawn before it, so an hour's
 * file comes out the same whether it is generated alone or as part of a month.
 */

/** A hash of the text, 32 bits: FNV-1a, then MurmurHash3's finalizer so that similar keys differ in all bits. */
export function hash32(text: string): number {
  let hash = 0x811c9dc5;
  for (let index = 0; index < text.length; index += 1) {
    hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193);
  }
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** Evenly distributed in [0, 1). */
export function uniform(key: string): number {
  return hash32(key) / 2 ** 32;
}

export function between(low: number, high: number, key: string): number {
  return low + (high - low) * uniform(key);
}

/** Close to a standard normal distribution: the sum of twelve uniform numbers, so never beyond ±6. */
export function normal(key: string): number {
  let sum = -6;
  for (let draw = 0; draw < 12; draw += 1) {
    sum += uniform(`${key}#${draw}`);
  }
  return sum;
}

/** A smooth curve through normal values that are `spacingMinutes` apart: what gusts and clouds do to a reading. */
export function drift(minute: number, spacingMinutes: number, key: string): number {
  const position = minute / spacingMinutes;
  const knot = Math.floor(position);
  const share = position - knot;
  const eased = share * share * (3 - 2 * share);
  return (1 - eased) * normal(`${key}@${knot}`) + eased * normal(`${key}@${knot + 1}`);
}
