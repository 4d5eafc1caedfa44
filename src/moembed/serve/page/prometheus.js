// Prometheus' text form: samples by name, sums over labels, and quantiles of what a histogram gained.

/** Map from the name of a sample to [{ labels, value }]. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
    if (!found) continue;
    const [, name, inside, value] = found;
    const labels = {};
    for (const [, label, quoted] of (inside ?? "").matchAll(/([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
      labels[label] = quoted.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels, value: Number(value.replace("Inf", "Infinity")) });
  }
  return samples;
}

/** The sum of the samples of a name that `keep(labels)` is true for. */
export function total(samples, name, keep = () => true) {
  return (samples.get(name) ?? []).reduce((sum, { labels, value }) => (keep(labels) ? sum + value : sum), 0);
}

/** Cumulative counts by upper bound, in order, of a histogram summed over its labels. */
export function buckets(samples, name, keep = () => true) {
  const counts = new Map();
  for (const { labels, value } of samples.get(`${name}_bucket`) ?? []) {
    if (!keep(labels)) continue;
    const bound = Number(labels.le.replace("Inf", "Infinity"));
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort((a, b) => a[0] - b[0]);
}

/**
 * The quantile `q` of what came between two readings of a histogram, interpolated inside its bucket; null where
 * nothing came. Beyond the last finite bound it is that bound: more is not known.
 */
export function quantile(before, after, q) {
  const past = new Map(before);
  const gained = after.map(([bound, count]) => [bound, count - (past.get(bound) ?? 0)]);
  const all = gained.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  let low = 0;
  let below = 0;
  for (const [bound, count] of gained) {
    if (count >= q * all) {
      if (bound === Infinity) return low;
      return count > below ? low + ((bound - low) * (q * all - below)) / (count - below) : bound;
    }
    low = bound;
    below = count;
  }
  return low;
}
