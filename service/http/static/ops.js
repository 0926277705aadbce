// The dashboard: one stream of snapshots, drawn into the page as it stands. Nothing is kept, nothing is sent.
import { emptySparkline, lines, number, sparkline } from "./ops_charts.js";
import { History, sum } from "./ops_history.js";

const EVENTS = new URL("../ops/events", import.meta.url); // under PUBLIC_URL's path

const RETRY_SECONDS = 5;
const SILENCE_MS = 10000;
const element = (id) => document.getElementById(id);
const seconds = () => performance.now() / 1000;
const history = new History();
const feed = { source: null, retry: null, silence: null, latest: null };

function tell(state, sentence) {
  const place = element("state");
  place.dataset.state = state;
  if (place.textContent !== sentence) place.textContent = sentence; // only a change is spoken
}

function put(id, text) {
  element(id).textContent = text;
}

// Brings a table's body to these rows, each a key and its cells; what is the same is left alone.
function fill(id, rows, emptyText) {
  const body = element(id).tBodies[0];
  const kept = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const wanted = rows.map(({ key, cells }) => {
    const row = kept.get(key) || document.createElement("tr");
    row.dataset.key = key;
    cells.forEach((cell, index) => fillCell(row, index, cell));
    return row;
  });
  if (!wanted.length) {
    const row = document.createElement("tr");
    const cell = row.insertCell();
    cell.colSpan = element(id).tHead.rows[0].cells.length;
    cell.className = "empty";
    cell.textContent = emptyText;
    wanted.push(row);
  }
  if (wanted.length !== body.rows.length || wanted.some((row, index) => row !== body.rows[index])) {
    body.replaceChildren(...wanted);
  }
}

function fillCell(row, index, { text, name = "", head = false, draw }) {
  let cell = row.cells[index];
  if (!cell) {
    cell = row.appendChild(document.createElement(head ? "th" : "td"));
    if (head) cell.scope = "row";
  }
  cell.className = name;
  if (draw) draw(cell);
  else if (cell.textContent !== text) cell.textContent = text;
}

const head = (text) => ({ text, head: true });
const figure = (value, name = "", digits = 1) => ({ text: number(value, digits), name: `number ${name}` });

function bar(share, name = "") {
  return {
    draw(cell) {
      if (!cell.firstChild) {
        cell.appendChild(document.createElement("span")).appendChild(document.createElement("i"));
      }
      cell.firstChild.className = `track ${name}`;
      cell.firstChild.firstChild.style.width = `${Math.min(100, (share || 0) * 100)}%`;
    },
  };
}

function percent(share) {
  return Number.isFinite(share) ? `${(share * 100).toLocaleString("en", { maximumFractionDigits: 1 })} %` : "–";
}

function statuses(counts) {
  return {
    draw(cell) {
      const chips = Object.entries(counts).map(([status, count]) => {
        const chip = document.createElement("span");
        chip.className = `status ${status >= 500 ? "server" : status >= 400 ? "client" : ""}`;
        chip.textContent = `${status} × ${number(count)}`;
        return chip;
      });
      if (cell.textContent !== chips.map((chip) => chip.textContent).join("")) cell.replaceChildren(...chips);
    },
  };
}

function course(route) {
  const values = history.points.slice(1).map((point) => point.routeRates.get(route) ?? 0);
  return {
    draw(cell) {
      if (!cell.firstChild) cell.appendChild(emptySparkline());
      if (values.length > 1) sparkline(cell.firstChild, values);
    },
  };
}

function showTiles(snapshot, point) {
  const { business, mail, breakers } = snapshot;
  put("rate", number(point.rate));
  put("total", `${number(point.total)} in all`);
  put("errors", number(point.errors));
  put("error-share", `${percent(point.total ? point.errors / point.total : 0)} of all requests`);
  element("errors").className = point.errorRate ? "bad" : "";
  put("p95", point.latency.p95 === null ? "–" : `${number(point.latency.p95)} ms`);
  put("queued", number(mail.queued + mail.sending));
  put("oldest", mail.queued ? `oldest ${number(mail.oldest_queued_seconds)} s` : "none is late");
  put("activated", number(business.activations));
  put("activated-share", `${percent(business.activations / business.registrations)} of registrations`);
  put("workers", number(snapshot.workers));
  const away = breakers.filter(({ open }) => open).map(({ server }) => server);
  put("breakers-word", away.length ? `away: ${away.join(", ")}` : "all servers answer");
}

function showCharts() {
  const now = history.points.at(-1).at;
  const ago = history.points.map((point) => now - point.at);
  const of = (read) => history.points.map(read);
  const draw = (id, series, least) => {
    lines(element(id).querySelector("figure > svg"), series, ago, history.span(), least);
    const newest = series.map(({ name, values }) => [name, number(values.at(-1))]);
    for (const [name, text] of newest) element(id).querySelector(`[data-value="${name}"]`).textContent = text;
    put(`${id}-values`, newest.map((pair) => pair.join(": ")).join(", "));
  };
  draw("requests-chart", [
    { name: "all", area: true, values: of((point) => point.rate) },
    { name: "bad", values: of((point) => point.errorRate) },
  ]);
  draw("latency-chart", ["p50", "p95", "p99"].map((name) => ({ name, values: of((point) => point.latency[name]) })));
  draw("queue-chart", [{ name: "depth", area: true, values: of((point) => point.queued) }], 2);
}

function showSignUps({ business, mail }) {
  const step = (key, text, count) => {
    const share = business.registrations ? count / business.registrations : NaN;
    return { key, cells: [head(text), figure(count), { text: percent(share), name: "number" }, bar(share)] };
  };
  fill("funnel", [
    step("registrations", "Registered", business.registrations),
    step("mails_accepted", "Mails accepted", business.mails_accepted),
    step("activations", "Activated", business.activations),
    step("resends", "Codes sent again", business.resends),
    step("mails_dead", "Mails given up", business.mails_dead),
  ]);
  const { count, p50, p95, p99 } = mail.time_to_accept;
  const late = mail.oldest_queued_seconds > 60 ? "late" : "";
  const cells = [count, p50, p95, p99, mail.queued, mail.sending].map((value) => figure(value));
  fill("mail", [{ key: "mail", cells: [...cells, figure(mail.queued ? mail.oldest_queued_seconds : 0, late)] }]);
  const dead = Object.entries(mail.dead).map(([reason, mails]) => ({ key: reason, cells: [head(reason), figure(mails)] }));
  fill("dead", dead, "None.");
}

function showRoutes({ routes }, point) {
  const rows = routes.map(({ route, statuses: counts, latency }) => {
    const times = ["p50", "p95", "p99", "max"].map((name) => figure(latency?.[name]));
    const total = sum(Object.values(counts));
    const cells = [head(route), figure(total), figure(point.routeRates.get(route)), course(route), statuses(counts), ...times];
    return { key: route, total, cells };
  });
  fill("routes", rows.sort((one, other) => other.total - one.total || one.key.localeCompare(other.key)), "No request yet.");
}

function showRuntime({ limits, breakers, actors }) {
  const limitRows = limits.map(({ rule, admitted, refused }) => {
    const share = refused / (admitted + refused || 1);
    return { key: rule, cells: [head(rule), figure(admitted), figure(refused), bar(share, "warn")] };
  });
  fill("limits", limitRows, "No decision yet.");
  const breakerRows = breakers.map(({ server, open, opened }) => {
    const state = open ? { text: `▲ away for ${open} of the workers`, name: "away" } : { text: "● answers" };
    return { key: server, cells: [head(server), state, figure(opened)] };
  });
  fill("breakers", breakerRows, "No reading yet.");
  const actorRows = actors.map(({ actor, waiting, turned_away: turned, dropped, restarts }) => {
    return { key: actor, cells: [head(actor), ...[waiting, turned, dropped, restarts].map((value) => figure(value))] };
  });
  fill("actors", actorRows, "No reading yet.");
}

function showNotes({ notes }) {
  element("notes").hidden = !notes.length;
  const list = element("notes").querySelector("ul");
  if ([...list.children].map((item) => item.textContent).join() === notes.join()) return;
  list.replaceChildren(...notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
}

function show(snapshot) {
  feed.latest = snapshot;
  const point = history.add(snapshot, seconds());
  showTiles(snapshot, point);
  showCharts();
  showSignUps(snapshot);
  showRoutes(snapshot, point);
  showRuntime(snapshot);
  showNotes(snapshot);
  put("updated", `as of ${new Date().toLocaleTimeString()}`);
}

function connect() {
  clearTimeout(feed.retry);
  feed.source = new EventSource(EVENTS);
  feed.source.onmessage = (event) => {
    tell("live", "Live");
    listen();
    show(JSON.parse(event.data));
  };
  feed.source.addEventListener("trouble", (event) => {
    listen();
    tell("trouble", event.data);
  });
  feed.source.onerror = () => feed.source.readyState === EventSource.CLOSED && refused();
  listen();
}

// A stream that says nothing for long is no stream any more, whatever the connection looks like.
function listen() {
  clearTimeout(feed.silence);
  feed.silence = setTimeout(() => {
    tell("trouble", "No answer. Trying again…");
    disconnect();
    connect();
  }, SILENCE_MS);
}

// Browsers do not come back by themselves after an answer that is no stream: find out why.
async function refused() {
  disconnect();
  let answer = null;
  try {
    answer = await fetch(EVENTS, { method: "HEAD", cache: "no-store" });
  } catch {
    // told below
  }
  if (answer?.status === 401) location.assign(new URL("../ops/session", import.meta.url));
  const wait = Number(answer?.headers.get("Retry-After")) || RETRY_SECONDS;
  if (answer?.status !== 503) tell("trouble", "No answer. Trying again…");
  else if (wait > 1) tell("trouble", "Too many dashboards are open. Trying again…");
  else tell("waiting", "Connecting…"); // that worker is about to end
  feed.retry = setTimeout(connect, wait * 1000);
}

function disconnect() {
  feed.source?.close();
  clearTimeout(feed.silence);
  clearTimeout(feed.retry);
}

element("pause").addEventListener("click", ({ target }) => {
  const pausing = target.getAttribute("aria-pressed") === "false";
  target.setAttribute("aria-pressed", String(pausing));
  if (pausing) {
    disconnect();
    tell("paused", "Paused");
  } else {
    tell("waiting", "Connecting…");
    connect();
  }
});
new ResizeObserver(() => feed.latest && showCharts()).observe(document.querySelector(".charts"));
connect();
