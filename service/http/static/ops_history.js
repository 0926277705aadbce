// The last minutes of snapshots, and what can only be told from several of them: rates, and latencies of right now.
const SPAN_SECONDS = 300;
const SPANS = [60, 120, SPAN_SECONDS]; // a young page shows a shorter time
const RATE_SECONDS = 6; // long enough to even out that workers report once a second, short enough to feel live
const LATENCY_SECONDS = 30;

export class History {
  constructor() {
    this.points = [];
  }

  add(snapshot, at) {
    const statuses = {};
    for (const { statuses: each } of snapshot.routes) {
      for (const [status, count] of Object.entries(each)) statuses[status] = (statuses[status] || 0) + count;
    }
    const routes = new Map(snapshot.routes.map(({ route, statuses: each }) => [route, sum(Object.values(each))]));
    const errors = sum(Object.entries(statuses).map(([status, count]) => (status >= 500 ? count : 0)));
    const point = { at, routes, statuses, errors, total: sum(routes.values()), queued: snapshot.mail.queued + snapshot.mail.sending };
    this.points = this.points.filter((each) => at - each.at <= SPAN_SECONDS);
    this.points.push(Object.assign(point, { buckets: snapshot.buckets }));
    const before = this.#before(RATE_SECONDS);
    point.rate = rate(before, point, (each) => each.total);
    point.errorRate = rate(before, point, (each) => each.errors);
    point.latency = latency(this.#before(LATENCY_SECONDS).buckets, point.buckets);
    point.routeRates = new Map([...routes].map(([route]) => [route, rate(before, point, (each) => each.routes.get(route) ?? 0)]));
    return point;
  }

  span() {
    const age = this.points.at(-1).at - this.points[0].at;
    return SPANS.find((span) => age <= span) ?? SPAN_SECONDS;
  }

  // The oldest point of the last so many seconds; the newest one itself while it is alone.
  #before(seconds) {
    const now = this.points.at(-1).at;
    return this.points.find((each) => now - each.at <= seconds + 0.5);
  }
}

export function sum(values) {
  return [...values].reduce((total, value) => total + value, 0);
}

function rate(before, after, of) {
  return after.at > before.at ? Math.max(0, of(after) - of(before)) / (after.at - before.at) : null;
}

// Percentiles of the requests between two cumulative histograms, placed evenly within their bucket; null without any.
function latency(before, after) {
  const counts = after.map(([, count], index) => Math.max(0, count - before[index][1]));
  const total = counts.at(-1);
  const at = (share) => {
    if (!total) return null;
    const index = counts.findIndex((count) => count >= share * total);
    const low = index ? after[index - 1][0] : 0;
    const below = index ? counts[index - 1] : 0;
    const high = after[index][0] ?? low;
    return low + (high - low) * ((share * total - below) / Math.max(1, counts[index] - below));
  };
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) };
}
