// Who we are, for the gateway: a token, if there is one, for as long as this tab is open; or else the certificate
// that the browser has.

const KEY = "xenpvd-token";

export const token = () => sessionStorage.getItem(KEY);
export const remember = (token) => (token ? sessionStorage.setItem(KEY, token) : sessionStorage.removeItem(KEY));

export async function ask(path, method = "GET") {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  const reply = await fetch(path, { method, headers, cache: "no-store" });
  if (!reply.ok) throw Object.assign(new Error((await reply.text()).trim()), { status: reply.status });
  return reply.json();
}

// A WebSocket can send no token: it comes with a ticket.
export async function admit(url) {
  url.searchParams.set("ticket", (await ask("/v1/tickets", "POST")).ticket);
}
