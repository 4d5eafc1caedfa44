// Calls to the server: the key, the time they take, and every failure as one sentence.

const STORE = "moembed-key";

/** `message` is a sentence for people; `status` is 0 where no answer came. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let asking = null; // the dialog that is open, shared by all calls that wait for it
let ask = async () => null;

/** `asker(reason)` shows a dialog and gives the key, or null. */
export function onKeyNeeded(asker) {
  ask = asker;
}

export const key = {
  get: () => sessionStorage.getItem(STORE),
  set: (value) => sessionStorage.setItem(STORE, value),
  forget: () => sessionStorage.removeItem(STORE),
};

async function keyFromDialog(refused) {
  key.forget();
  asking ??= ask(refused).finally(() => (asking = null));
  return asking;
}

/**
 * POST `body` as JSON, or GET where there is none.
 * Returns { data, roundTrip, server }: milliseconds here, and those that the server counted, or null.
 */
export async function call(path, body, { text = false, signal } = {}) {
  const start = performance.now();
  const sent = key.get();
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (sent) headers.Authorization = `Bearer ${sent}`;
  let answer;
  let content;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "omit",
      cache: "no-store",
    });
    content = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer: see whether it still runs, then try again.");
  }
  const roundTrip = performance.now() - start;
  if (answer.status === 401) {
    const given = key.get() !== sent ? key.get() : await keyFromDialog(Boolean(sent));
    if (given) return call(path, body, { text, signal });
    throw new ServerError("This server wants a key, and none was given: reload the page to give one.", 401);
  }
  if (!answer.ok) throw new ServerError(sentence(answer, content), answer.status);
  return { data: text ? content : JSON.parse(content), roundTrip, server: serverTime(answer) };
}

function sentence(answer, content) {
  let said = "";
  try {
    const body = JSON.parse(content);
    said = body.error?.message ?? body.error ?? body.detail ?? "";
  } catch {
    // no JSON: a proxy answered, and its page says nothing to people
  }
  if (typeof said !== "string" || !said) said = `The server answered with status ${answer.status} and no reason.`;
  said = said[0].toUpperCase() + said.slice(1);
  if (!/[.!?]$/.test(said)) said += ".";
  const wait = Number(answer.headers.get("Retry-After"));
  if (wait) said += ` Try again in ${wait === 1 ? "a second" : `${wait} seconds`}.`;
  return said;
}

function serverTime(answer) {
  const told = /(?:^|,)\s*total;dur=([\d.]+)/.exec(answer.headers.get("Server-Timing") ?? "");
  return told ? Number(told[1]) : null;
}

/** Rows of float32 from an answer of /v1/embeddings in base64, little-endian. */
export function rowsOf(data) {
  return data.data.map(({ embedding }) => {
    const bytes = Uint8Array.from(atob(embedding), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  });
}

/** The cosine of two unit vectors. */
export function cosine(one, other) {
  let sum = 0;
  for (let i = 0; i < one.length; i++) sum += one[i] * other[i];
  return sum;
}
