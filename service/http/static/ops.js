"use strict";

// The operators' page: what /api/v1/metrics and /api/v1/health say, read again and again. The token stays in memory.
const API = new URL("../api/v1/", document.currentScript.src); // under PUBLIC_URL's path
const EVERY_MS = 2000;
const element = (id) => document.getElementById(id);
const number = (value, unit = "") => (value === null || value === undefined ? "–" : value.toLocaleString("en") + unit);
let token = null;
let timer = null;

async function read(name) {
  const headers = { Accept: "application/json", ...(token === null ? {} : { Authorization: `Bearer ${token}` }) };
  const response = await fetch(new URL(name, API), { headers, cache: "no-store" });
  return { status: response.status, data: await response.json() };
}

// Brings a table's body to these rows of texts, the first of each being its head.
function fill(id, rows) {
  const made = rows.map(([name, ...cells]) => {
    const row = document.createElement("tr");
    const head = row.appendChild(document.createElement("th"));
    head.scope = "row";
    head.textContent = name;
    for (const text of cells) row.insertCell().textContent = text;
    return row;
  });
  element(id).tBodies[0].replaceChildren(...made);
}

function show(metrics, health) {
  const { business_metrics: business, mail, latencies } = metrics;
  const { count, p50, p95, p99 } = mail.time_to_accept;
  fill("sign-ups", [
    ["Registered", number(business.registrations)],
    ["Mails accepted", number(business.mails_accepted)],
    ["Activated", number(business.activations)],
    ["Codes sent again", number(business.resends)],
    ["Mails given up", number(business.mails_dead)],
  ]);
  fill("mail", [
    ["Waiting", number(mail.queued)],
    ["Oldest", number(mail.oldest_queued_seconds, " s")],
    ["Accepted", number(count)],
    ["From owed to accepted: p50, p95, p99", [p50, p95, p99].map((value) => number(value, " ms")).join(", ")],
  ]);
  fill("servers", [
    ...Object.entries(health.checks),
    ["workers", number(metrics.workers)],
    ["errors (5xx)", number(metrics.error_count)],
    ...Object.entries(metrics.status_counts).map(([status, times]) => [status, number(times)]),
  ]);
  fill("routes", Object.entries(metrics.request_counts).map(([route, requests]) => {
    const latency = latencies[route] ?? {};
    return [route, number(requests), ...["p50", "p95", "p99", "max"].map((name) => number(latency[name]))];
  }));
  const notes = [...new Set([...health.notes, ...(metrics.notes ?? [])])];
  element("notes").replaceChildren(...notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = note;
    return item;
  }));
}

function tell(sentence) {
  if (element("state").textContent !== sentence) element("state").textContent = sentence; // only a change is spoken
}

async function update() {
  clearTimeout(timer);
  try {
    const [metrics, health] = await Promise.all([read("metrics"), read("health")]);
    const shown = metrics.status === 200;
    element("sign-in").hidden = metrics.status !== 401;
    element("figures").hidden = !shown;
    if (shown) show(metrics.data, health.data);
    tell(shown ? `The service is ${health.data.status}.` : metrics.data.detail);
    if (metrics.status === 401) return; // each further try would be one of the guesses
  } catch {
    tell("The service cannot be reached. Trying again.");
  }
  timer = setTimeout(update, EVERY_MS);
}

element("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value;
  update();
});
update();
