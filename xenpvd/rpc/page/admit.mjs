// What a WebSocket's address needs to be let in. Here: nothing, the socket's file says who may.

export async function admit(url) {}
