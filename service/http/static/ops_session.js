// Sends the token in a form's body and shows a refusal beside the field; without this script the form does the same.
const form = document.getElementById("session");
const token = document.getElementById("token");
const problem = document.getElementById("token-problem");

function tell(sentence) {
  problem.textContent = sentence;
  token.setAttribute("aria-invalid", String(Boolean(sentence)));
  if (sentence) token.focus();
}

async function refusal(response) {
  const { detail, retry_after: wait } = await response.json();
  if (response.status === 401) return "This is not the token.";
  return wait ? `${detail} Try again in ${wait} s.` : detail;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("");
  const body = new URLSearchParams({ token: token.value });
  const headers = { Accept: "application/json" };
  try {
    const response = await fetch(form.action, { method: "POST", body, headers, redirect: "manual" });
    if (response.type === "opaqueredirect") location.assign(new URL("../ops", import.meta.url));
    else tell(await refusal(response));
  } catch {
    tell("The service cannot be reached. Try again.");
  }
});
token.focus();
