// Requests to the server that this page came from: JSON, and streams of server-sent events.

/** What went wrong, as one sentence for the reader; `status` is the HTTP status, 0 where no answer came. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let key = "";

/** Keep an API key for the requests that follow. It is never stored: it goes when the page is closed. */
export function useKey(value) {
  key = value.trim();
}

export async function getJson(path) {
  return (await request(path, {})).json();
}

/** POST a body and yield the JSON of each event of the answer's stream, until it says [DONE]. */
export async function* postStream(path, body, signal) {
  const response = await request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  let isDone = false;
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") {
      isDone = true;
      break;
    }
    const event = parsed(data);
    if (event.error) throw new ServerError(sentence(event.error, 200), 200);
    yield event;
  }
  if (!isDone) throw new ServerError("The answer ended before its end mark: the server may have stopped, so run again.");
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError(`The server sent ${JSON.stringify(data.slice(0, 80))}, which is not JSON: check what stands between it and this page.`);
  }
}

async function request(path, options) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    // The page's own address may hold a name and a key, which no request may.
    response = await fetch(new URL(path, location.origin + location.pathname), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer: check that `depthdial serve` still runs, then run again.");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new ServerError("The API key is missing or wrong: enter it here.", 401);
  const told = await response.json().catch(() => ({}));
  throw new ServerError(sentence(told.error ?? told.detail, response.status), response.status);
}

function sentence(error, status) {
  const text = typeof error === "string" ? error : error?.message;
  return text || `The server answered with status ${status} and no reason: its log may tell more.`;
}

/** The data of each server-sent event of a stream of bytes; comments and other fields are left out. */
export async function* eventsOf(stream) {
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection broke in the middle of the answer: check the server, then run again.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
