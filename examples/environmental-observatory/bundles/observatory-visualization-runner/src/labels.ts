/**
 * Moves labels apart: where each of them wants to be (in any order) → where it goes, so that they are at least `gap` apart and
 * within [low, high], and otherwise as near as possible to what they want. Without room for that, they are evenly spaced.
 */
export function spread(wanted: readonly number[], gap: number, low: number, high: number): number[] {
  const count = wanted.length;
  const order = wanted.map((_, index) => index).sort((left, right) => wanted[left]! - wanted[right]!);
  const room = count > 1 ? Math.min(gap, (high - low) / (count - 1)) : gap;
  const offsets = ascending(order.map((index, rank) => wanted[index]! - rank * room));
  const placed = new Array<number>(count);
  for (const [rank, index] of order.entries()) {
    const offset = Math.min(Math.max(offsets[rank]!, low), high - (count - 1) * room);
    placed[index] = offset + rank * room;
  }
  return placed;
}

/** The nearest sequence that never descends: neighbours that do are replaced by their mean (pool adjacent violators). */
function ascending(values: readonly number[]): number[] {
  const pools: { mean: number; size: number }[] = [];
  for (const value of values) {
    let pool = { mean: value, size: 1 };
    for (let before = pools.at(-1); before && before.mean > pool.mean; before = pools.at(-1)) {
      pools.pop();
      const size = before.size + pool.size;
      pool = { mean: (before.mean * before.size + pool.mean * pool.size) / size, size };
    }
    pools.push(pool);
  }
  return pools.flatMap(({ mean, size }) => new Array<number>(size).fill(mean));
}

/** One decimal, with a true minus sign, and never a negative zero. */
export function signed(value: number): string {
  const text = Math.abs(value).toFixed(1);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}
