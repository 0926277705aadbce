"use strict";

// The sign-up page over the public API. Address and password stay in the form's fields and in memory, nowhere else.
const USERS = new URL("../api/v1/users", document.currentScript.src).pathname; // under PUBLIC_URL's path
const POLL_MS = 1500;
const SENTENCES = {
  queued: "The mail with your code is about to be sent.",
  sending: "The mail with your code is being sent.",
  expired: "The code's time is over. Ask for a new one.",
  exhausted: "Too many wrong attempts. Ask for a new code.",
  undeliverable: "The mail could not be delivered. Check the address and register again.",
  activated: "Your account is active.",
};
const element = (id) => document.getElementById(id);
const state = { statusUrl: null, key: null, body: null, poll: null };

function credentials() {
  const bytes = new TextEncoder().encode(`${element("email").value.trim()}:${element("password").value}`);
  return "Basic " + btoa(String.fromCharCode(...bytes));
}

function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function call(method, path, { body, headers = {} } = {}) {
  const options = { method, headers: { Accept: "application/json", ...headers }, cache: "no-store" };
  if (body !== undefined) {
    options.body = body;
    options.headers["Content-Type"] = "application/json";
  }
  try {
    const response = await fetch(path, options);
    return { ok: response.ok, status: response.status, data: await response.json() };
  } catch {
    return { ok: false, status: 0, data: { detail: "The service cannot be reached. Try again." } };
  }
}

function tell(field, sentence) {
  element(`${field}-problem`).textContent = sentence;
  element(field).setAttribute("aria-invalid", String(Boolean(sentence)));
  if (sentence) element(field).focus();
}

function sentenceOf({ data }) {
  const words = {
    too_short: "It is too short.", too_long: "It is longer than 72 bytes.", common: "It is too well known.",
    contains_address: "It is your address.",
  };
  const reasons = (data.reasons || []).map((reason) => words[reason] || reason);
  const errors = (data.errors || []).map((error) => `${error.field} ${error.message}.`);
  const wait = data.retry_after ? [`Try again in ${data.retry_after} s.`] : [];
  const left = data.attempts_left === undefined ? [] : [`${data.attempts_left} attempts left.`];
  return [data.detail, ...reasons, ...errors, ...left, ...wait].join(" ");
}

async function busy(form, work) {
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  try {
    await work();
  } finally {
    button.disabled = false;
  }
}

function show(name) {
  for (const id of ["register", "activate", "done"]) element(id).hidden = id !== name;
  const focus = { register: "email", activate: "code", done: "done" }[name];
  element(focus).focus();
}

async function register() {
  tell("email", "");
  tell("password", "");
  const body = JSON.stringify({ email: element("email").value.trim(), password: element("password").value });
  if (body !== state.body) Object.assign(state, { body, key: randomKey() }); // a repeat is the same registration
  const answer = await call("POST", `${USERS}/register`, { body, headers: { "Idempotency-Key": state.key } });
  if (answer.ok) {
    state.statusUrl = answer.data.status_url || null;
    enterCode(answer.data.message);
  } else {
    if (answer.status >= 400 && answer.status < 500) state.body = null;
    const aboutPassword = answer.data.error === "WeakPassword" || (answer.data.errors || [])[0]?.field === "password";
    tell(aboutPassword ? "password" : "email", sentenceOf(answer));
  }
}

function enterCode(message) {
  show("activate");
  element("progress").textContent = message;
  clearTimeout(state.poll);
  if (state.statusUrl) state.poll = setTimeout(watch, POLL_MS / 3);
}

async function watch() {
  const answer = await call("GET", state.statusUrl);
  if (element("activate").hidden) return;
  if (answer.ok) {
    const { state: word, code_expires_in: left } = answer.data;
    const running = word === "accepted" || word === "delivered";
    element("progress").textContent = running ? `Your code is in your mailbox. It is valid for ${left} s.` : SENTENCES[word];
  }
  if (answer.status !== 404) state.poll = setTimeout(watch, POLL_MS);
}

async function activate() {
  tell("code", "");
  const body = JSON.stringify({ code: element("code").value });
  const answer = await call("POST", `${USERS}/activate`, { body, headers: { Authorization: credentials() } });
  if (answer.ok || answer.data.error === "UserAlreadyActivated") {
    clearTimeout(state.poll);
    element("password").value = "";
    show("done");
  } else {
    tell("code", sentenceOf(answer));
  }
}

async function resend() {
  tell("code", "");
  const answer = await call("POST", `${USERS}/resend`, { headers: { Authorization: credentials() } });
  if (answer.ok) element("progress").textContent = answer.data.message;
  else tell("code", sentenceOf(answer));
}

function onSubmit(id, work) {
  element(id).addEventListener("submit", (event) => {
    event.preventDefault();
    busy(element(id), work);
  });
}

onSubmit("register", register);
onSubmit("activate", activate);
element("resend").addEventListener("click", resend);
element("back").addEventListener("click", () => show("register"));
element("have-code").addEventListener("click", () => enterCode("Type the code from the mail."));
