// Sign up with fetch: node fetch.mjs URL EMAIL PASSWORD, then the code on a line of standard input.
import { createInterface } from "node:readline/promises";

const [url, email, password] = process.argv.slice(2);
const basic = Buffer.from(`${email}:${password}`, "utf8").toString("base64");
const users = `${url}/api/v1/users`;

async function call(method, path, body, headers = {}) {
  const answer = await fetch(users + path, {
    method,
    headers: { "Content-Type": "application/json", ...headers },
    body: body && JSON.stringify(body),
  });
  await answer.json();
  return answer.status;
}

const own = { Authorization: `Basic ${basic}` };
console.log(await call("POST", "/register", { email, password }));
const code = await createInterface({ input: process.stdin }).question("");
console.log(await call("POST", "/activate", { code }, own));
console.log(await call("GET", "/me", undefined, own));
process.exit();
