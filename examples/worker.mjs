// A Tickwheel worker in plain Node (18 or newer), from the protocol alone.
//
//   node examples/worker.mjs http://127.0.0.1:8080 default=10
//
// register → poll → run → report, with renewals at a third of the lease; SIGTERM drains.

import { hostname } from "node:os";
import { performance } from "node:perf_hooks";

const [url = "http://127.0.0.1:8080", ...declared] = process.argv.slice(2);
const queues = Object.fromEntries((declared.length ? declared : ["default=10"])
  .map((pair) => [pair.split("=")[0], Number(pair.split("=")[1] ?? 1)]));
const GRACE_SECONDS = 30, WAIT_SECONDS = 25, REPORT_MAX = 1000, LEASE_MARGIN = 0.2;

const tasks = {
  echo: async (args) => args,
  fail: async (args) => { throw new Error(args.message ?? "as asked"); },
  sleep: (args, signal) => new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * args.seconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
  }),
};

let workerId, seq = 1, draining = false, polling = new AbortController();
const running = new Map();                    // job id → attempt
let ended = { succeeded: [], failed: [], released: [] };
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const now = () => performance.now() / 1000;

async function call(method, path, body, signal = AbortSignal.timeout(30_000)) {
  const headers = { "Content-Type": "application/json" };
  if (process.env.TICKWHEEL_API_KEY) headers.Authorization = `Bearer ${process.env.TICKWHEEL_API_KEY}`;
  const response = await fetch(url + path, { method, headers, body: JSON.stringify(body), signal });
  const text = await response.text();
  if (response.ok) return text ? JSON.parse(text) : {};
  const problem = JSON.parse(text);
  throw Object.assign(new Error(`${response.status} ${problem.code}: ${problem.detail}`), problem);
}

async function register() {
  const name = `node-${hostname()}-${process.pid}`;
  const body = { name, queues, tasks: Object.keys(tasks), protocol: 1 };
  ({ worker_id: workerId } = await call("POST", "/v1/workers", body));
  seq = 1;
  console.log(`registered ${workerId}`);
}

// An unknown session means that the scheduler restarted: register, and the next report's
// `running` hands it our leases. Everything else passes with time.
async function recover(error) {
  console.error(String(error));
  await pause(0.2 + Math.random());
  if (error.code === "unknown_worker") await register().catch(recover);
}

async function poll() {
  const slots = { ...queues };
  for (const attempt of running.values()) slots[attempt.job.queue] -= 1;
  for (const queue in slots) if (slots[queue] <= 0) delete slots[queue];
  if (!Object.keys(slots).length) return pause(0.02);
  // Waiting long only if all queues are asked for: a slot of another may come free meanwhile.
  const all = Object.keys(slots).length === Object.keys(queues).length;
  const body = { seq, slots, wait_seconds: all ? WAIT_SECONDS : 0.2 };
  const answer = await call("POST", `/v1/workers/${workerId}/poll`, body, polling.signal);
  seq += 1;                                   // only now: a lost answer is asked for again
  for (const job of answer.jobs) run(job);
  answer.cancel.forEach((id) => running.get(id)?.stop.abort("cancelled"));
}

async function run(job) {
  const attempt = { job, stop: new AbortController(), fenceAt: 0 };
  running.set(job.id, attempt);
  extend(attempt, now());
  const late = setTimeout(() => attempt.stop.abort("timeout"), Math.min(2 ** 31 - 1, 1000 * job.timeout_seconds));
  const item = { job_id: job.id, fencing_token: job.fencing_token };
  try {
    if (!Object.hasOwn(tasks, job.task)) throw Object.assign(new Error(job.task), { name: "UnknownTask" });
    const result = await tasks[job.task](job.args, attempt.stop.signal);
    finish(attempt, "succeeded", { ...item, result: result ?? null });
  } catch (error) {
    const reason = attempt.stop.signal.reason;
    if (reason === "drain") finish(attempt, "released", item);
    else finish(attempt, "failed", { ...item, retryable: reason !== "cancelled",
      error: { type: { timeout: "Timeout", cancelled: "Cancelled" }[reason] ?? error.name ?? "Error",
        message: String(error?.message ?? error), traceback: error?.stack } });
  } finally { clearTimeout(late); }
}

const extend = (attempt, sentAt) => { attempt.fenceAt = sentAt + attempt.job.lease_seconds * (1 - LEASE_MARGIN); };
function lose(attempt) { running.delete(attempt.job.id); attempt.stop.abort("lost"); }
function finish(attempt, kind, item) {
  if (running.get(attempt.job.id) !== attempt) return;   // the lease was lost: not ours to report
  running.delete(attempt.job.id);
  ended[kind].push(item);
}

let renewAt = 0;
async function report() {
  for (const attempt of running.values()) if (now() >= attempt.fenceAt) lose(attempt);
  const renewing = now() >= renewAt ? [...running.values()].slice(0, REPORT_MAX) : [];
  const body = Object.fromEntries(Object.entries(ended).map(([kind, items]) => [kind, items.slice(0, REPORT_MAX)]));
  body.running = renewing.map(({ job }) => ({ job_id: job.id, fencing_token: job.fencing_token }));
  if (!Object.values(body).some((items) => items.length)) return;
  const sentAt = now();
  const answer = await call("POST", `/v1/workers/${workerId}/report`, body);
  for (const kind in ended) ended[kind].splice(0, body[kind].length);   // only now: committed
  const status = new Map(answer.results.map((result) => [result.job_id, result.status]));
  for (const attempt of renewing) status.get(attempt.job.id) === "stale" ? lose(attempt) : extend(attempt, sentAt);
  if (renewing.length) renewAt = sentAt + Math.min(...renewing.map(({ job }) => job.lease_seconds)) / 3;
  answer.cancel.forEach((id) => running.get(id)?.stop.abort("cancelled"));
}

process.on("SIGTERM", () => { draining = true; polling.abort(); });
await register().catch(recover);
const reports = (async () => {
  while (!draining || running.size || Object.values(ended).some((items) => items.length)) {
    await report().catch(recover);
    await pause(0.01);
  }
})();
while (!draining) await poll().catch((error) => draining || recover(error));
setTimeout(() => running.forEach((attempt) => attempt.stop.abort("drain")), 1000 * GRACE_SECONDS);
await reports;
await call("DELETE", `/v1/workers/${workerId}`).catch(() => {});
process.exit(0);
