// Sign up with the client that a generator made in ./out: tsx generated.mts URL EMAIL PASSWORD, the code on standard input.
import { createInterface } from "node:readline/promises";
import { activate, me, register } from "./out";
import { client } from "./out/client.gen";

const [baseUrl, email, password] = process.argv.slice(2);
client.setConfig({ baseUrl, auth: `${email}:${password}` });

console.log((await register({ body: { email, password } })).response.status);
const code = await createInterface({ input: process.stdin }).question("");
console.log((await activate({ body: { code } })).response.status);
console.log((await me()).response.status);
process.exit();
