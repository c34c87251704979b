// Runs one handler: node node.mjs CONTROL_FD EVENT_FD
//
// Control, a JSON object a line: first {entry, parameters, secrets, context, environment,
// maxResultBytes}, later perhaps {abort: reason}.
// Events, a JSON object a line: ready, started, log, progress, update, and at last result or error.
// The process waits for its first control line before it imports anything of the bundle's. When the control channel
// closes, the runner is gone, and the whole process group ends.

// Not imported: an import of such a module runs all its lazy parts, and half of the time to start goes there.
const fs = process.getBuiltinModule("node:fs");

const [controlFd, eventFd] = process.argv.splice(2, 2).map(Number);
const MAX_EVENT_CHARACTERS = 64 * 1024;
const DRAIN_MILLISECONDS = 2000;
const LISTEN_MILLISECONDS = 20;
const abortion = new AbortController();
const printedTo = new Set();
let pending = "";
let over = false;

// The streams are made when they are first used, which takes a while: those that never were need not be drained.
for (const name of ["stdout", "stderr"]) {
  const { get } = Object.getOwnPropertyDescriptor(process, name);
  const stream = () => {
    const made = get.call(process);
    printedTo.add(made);
    return made;
  };
  Object.defineProperty(process, name, { configurable: true, enumerable: true, get: stream });
}

function write(text) {
  const bytes = Buffer.from(text + "\n", "utf8");
  for (let at = 0; at < bytes.length; ) {
    try {
      at += fs.writeSync(eventFd, bytes, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

function send(event) {
  if (!over) write(JSON.stringify(event));
}

// The last event. What the job printed before may still be on its way: pipes are written to asynchronously.
function end(text, code) {
  if (over) return;
  write(text);
  over = true;
  const exit = () => process.exit(code);
  let waiting = printedTo.size;
  if (waiting === 0) exit();
  setTimeout(exit, DRAIN_MILLISECONDS);
  for (const stream of printedTo) stream.write("", () => --waiting || exit());
}

function cut(value, length) {
  const text = typeof value === "string" ? value : describe(value);
  return text.length > length ? `${text.slice(0, length)}…` : text;
}

function describe(value) {
  try {
    if (typeof value !== "object" || value === null) return String(value);
    return process.getBuiltinModule("node:util").inspect(value, { depth: 4 });
  } catch {
    return "(something that can't be shown)";
  }
}

// Fields that are no JSON, or too much of it, become text.
function plain(fields) {
  if (fields === undefined || fields === null) return undefined;
  try {
    const text = JSON.stringify(fields);
    if (text !== undefined && text.length <= MAX_EVENT_CHARACTERS) {
      const value = JSON.parse(text);
      return typeof value === "object" && !Array.isArray(value) && value !== null ? value : { value };
    }
  } catch {
    // described below
  }
  return { value: cut(describe(fields), MAX_EVENT_CHARACTERS) };
}

function log(level, message, fields) {
  send({ type: "log", level, message: cut(message, MAX_EVENT_CHARACTERS), fields: plain(fields) });
}

function failure(error) {
  const isError = error instanceof Error || (typeof error === "object" && error !== null && "message" in error);
  const name = isError ? cut(error.name || error.constructor?.name || "Error", 100) : "Error";
  const message = isError && error.message ? error.message : describe(error);
  return {
    type: "error",
    name,
    message: cut(message, MAX_EVENT_CHARACTERS),
    stack: cut(isError ? describe(error) : new Error(describe(error)).stack, MAX_EVENT_CHARACTERS),
  };
}

function refuse(name, message) {
  end(JSON.stringify({ type: "error", name, message }), 1);
}

function fail(error) {
  end(JSON.stringify(failure(error)), 1);
}

function makeLogger() {
  const logger = (message, fields) => log("info", message, fields);
  for (const [method, level] of Object.entries({
    debug: "debug",
    info: "info",
    log: "info",
    warn: "warning",
    error: "error",
  })) {
    logger[method] = (message, fields) => log(level, message, fields);
  }
  return logger;
}

function contextNames(start) {
  return {
    parameters: start.parameters,
    ...start.context,
    logger: makeLogger(),
    signal: abortion.signal,
    progress(fraction, message) {
      const number = Number(fraction);
      send({
        type: "progress",
        fraction: Number.isFinite(number) ? Math.min(1, Math.max(0, number)) : null,
        message: message === undefined || message === null ? null : cut(message, 1000),
      });
    },
    update(fields) {
      send({ type: "update", fields: plain(fields) ?? {} });
    },
    resolveSecret(name) {
      if (Object.hasOwn(start.secrets, name)) return start.secrets[name];
      throw new Error(
        `secret “${cut(name, 100)}” is not declared: add its name to “secrets” in the definition of the job, which ` +
          `declares ${Object.keys(start.secrets).join(", ") || "none"}. A run of a bundle without a job has none.`,
      );
    },
  };
}

// One argument: the context, which by its prototype also answers to the parameters' names. Two, the older convention: the
// parameters, which by their prototype also answer to the context's names, and the context.
function call(handler, start) {
  const names = contextNames(start);
  if (handler.length < 2) return handler(Object.assign(Object.create(start.parameters), names));
  const parameters = Object.create(names, Object.getOwnPropertyDescriptors(start.parameters));
  return handler(parameters, names);
}

function findHandler(module) {
  const main = module.default;
  if (typeof module.handler === "function") return module.handler;
  if (typeof main === "function") return main;
  if (typeof main?.handler === "function") return main.handler.bind(main);
  return typeof main?.default === "function" ? main.default : undefined; // transpiled from ESM to CommonJS
}

async function run(start) {
  process.argv[1] = start.entry;
  Object.assign(process.env, start.environment);
  let module;
  try {
    module = await import(process.getBuiltinModule("node:url").pathToFileURL(start.entry).href);
  } catch (error) {
    fail(error);
    return;
  }
  const handler = findHandler(module);
  if (handler === undefined) {
    refuse(
      "no_handler",
      `the entry exports no function “handler” (it exports ${Object.keys(module).join(", ") || "nothing"}). ` +
        "Export one, or a function as default.",
    );
    return;
  }
  let value;
  try {
    send({ type: "started" });
    value = await call(handler, start);
  } catch (error) {
    fail(error);
    return;
  }
  finish(value, start.maxResultBytes);
}

function finish(value, maxBytes) {
  let text;
  try {
    text = value === undefined ? "null" : JSON.stringify(value);
  } catch (error) {
    refuse("result_not_json", `the handler returned what is not JSON: ${cut(error.message, 500)}`);
    return;
  }
  if (text === undefined) {
    refuse("result_not_json", `the handler returned what is not JSON: a ${typeof value}.`);
    return;
  }
  const size = Buffer.byteLength(text);
  if (size > maxBytes) {
    refuse(
      "result_too_large",
      `the result is ${size} bytes as JSON; the limit is ${maxBytes}. Write large data to files in outputDir.`,
    );
    return;
  }
  end(`{"type":"result","value":${text}}`, 0);
}

process.on("uncaughtException", fail);
process.on("unhandledRejection", fail);

const runnerGone = () => process.kill(0, "SIGKILL");

// The next line of what is pending, parsed; undefined where it has not come yet.
function nextMessage() {
  const at = pending.indexOf("\n");
  if (at < 0) return undefined;
  const message = JSON.parse(pending.slice(0, at));
  pending = pending.slice(at + 1);
  return message;
}

// Wait for the start with nothing else to do.
function readStart() {
  const decoder = new TextDecoder();
  const bytes = Buffer.allocUnsafe(64 * 1024);
  let message;
  while ((message = nextMessage()) === undefined) {
    const size = fs.readSync(controlFd, bytes);
    if (size === 0) runnerGone();
    pending += decoder.decode(bytes.subarray(0, size), { stream: true });
  }
  return message;
}

// What comes afterwards is read beside the job, and does not keep a job going that waits for nothing.
function listen() {
  const { Socket } = process.getBuiltinModule("node:net");
  const control = new Socket({ fd: controlFd, readable: true, writable: false });
  const take = (text) => {
    pending += text;
    for (let message = nextMessage(); message !== undefined; message = nextMessage()) {
      if (message.abort !== undefined) abortion.abort(new Error(message.abort));
    }
  };
  control.setEncoding("utf8");
  control.on("data", take);
  control.on("end", runnerGone);
  control.on("error", runnerGone);
  control.unref();
  take("");
}

send({ type: "ready" });
const start = readStart();
setTimeout(listen, LISTEN_MILLISECONDS).unref(); // many jobs are over before that
run(start);
