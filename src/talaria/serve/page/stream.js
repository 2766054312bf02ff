// The server's routes: models, an answer piece by piece, a thumb. What goes wrong is a ServerError.

export class ServerError extends Error {
  // `kind`: an HTTP status, "Network" (nobody answered) or "Cut" (the answer broke off). `wait` in seconds.
  constructor(kind, message = "", wait = 0) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

export async function listModels(key) {
  const response = await request("v1/models", key);
  return (await response.json()).data.map((model) => model.id);
}

// Returns {answer_id}.
export async function sendThumb(key, body) {
  return (await request("v1/feedback", key, body)).json();
}

// Calls `onText` with each piece; returns why the answer ended ("stop" or "length").
export async function streamAnswer(key, body, signal, onText) {
  const response = await request("v1/chat/completions", key, { ...body, stream: true }, signal);
  let finish = null;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return finish;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(statusOf(event.error), event.error.message);
    for (const choice of event.choices) {
      if (choice.delta.content) onText(choice.delta.content);
      finish = choice.finish_reason ?? finish;
    }
  }
  throw new ServerError("Cut");
}

// In a stream the status has gone out, so the error's code stands for it.
function statusOf(error) {
  return { timeout: 504, overloaded: 503 }[error.code] ?? 500;
}

// The response of a route; a body is posted as JSON. Raises ServerError.
export async function request(path, key, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, credentials: "omit", cache: "no-store" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("Network", String(error));
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new ServerError(response.status, told?.error?.message ?? "", Number(response.headers.get("Retry-After")) || 0);
}

// The data of each server-sent event.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("Cut", String(error));
  } finally {
    reader.cancel().catch(() => {});
  }
}
