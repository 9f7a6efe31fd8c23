// A Tickwheel worker in plain Node (18 or newer), from the protocol alone:
//   node examples/worker.mjs http://127.0.0.1:8080 default=10
// register → poll → run → report, leases renewed at a third of their length; SIGTERM drains.
// For one scheduler, on a machine that doesn't sleep.

import { hostname } from "node:os";
const [url = "http://127.0.0.1:8080", ...declared] = process.argv.slice(2);
const pairs = (declared.length ? declared : ["default=10"]).map((pair) => pair.split("="));
const queues = Object.fromEntries(pairs.map(([queue, slots]) => [queue, Number(slots ?? 1)]));
const GRACE_SECONDS = 30, WAIT_SECONDS = 25, REPORT_MAX = 1000, LEASE_MARGIN = 0.2;

const tasks = {
  echo: async (args) => args,
  fail: async (args) => { throw new Error(args.message); },
  sleep: (args, signal) => new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * args.seconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
  }),
};

let workerId, seq = 1, draining = false;
const polling = new AbortController(), running = new Map();   // job id → attempt
const ended = { succeeded: [], failed: [], released: [] };
const now = () => performance.now() / 1000;
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function call(method, path, body, signal = AbortSignal.timeout(30_000)) {
  const key = process.env.TICKWHEEL_API_KEY;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(url + path, { method, headers, body: JSON.stringify(body), signal });
  const text = await response.text();
  if (response.ok) return text ? JSON.parse(text) : {};
  throw Object.assign(new Error(text), { status: response.status, path });
}

async function register() {
  const body = { name: `${hostname()}-${process.pid}`, queues, tasks: Object.keys(tasks) };
  ({ worker_id: workerId } = await call("POST", "/v1/workers", { ...body, protocol: 1 }));
  seq = 1;
  // What still runs goes into the next report: that hands the new session its leases.
  for (const attempt of running.values()) attempt.renewAt = 0;
  console.log(`registered ${workerId}`);
}

async function recover(error) {               // whatever it is passes with time
  await pause(0.2 + Math.random());
  if (error.status === 404 && error.path.includes(`/${workerId}/`)) await register().catch(() => {});
}

async function poll() {
  const slots = { ...queues };
  for (const { job } of running.values()) slots[job.queue] -= 1;
  for (const queue in slots) if (slots[queue] <= 0) delete slots[queue];
  if (!Object.keys(slots).length) return pause(0.02);
  // Waiting long only if all queues are asked for: a slot of another may come free meanwhile.
  const all = Object.keys(slots).length === Object.keys(queues).length;
  const body = { seq, slots, wait_seconds: all ? WAIT_SECONDS : 0.2 };
  const sentAt = now();
  const answer = await call("POST", `/v1/workers/${workerId}/poll`, body, polling.signal);
  seq += 1;                                   // only now: a lost answer is asked for again
  answer.jobs.forEach((job) => run(job, sentAt + answer.waited_seconds));
  answer.cancel.forEach((id) => running.get(id)?.stop.abort("cancelled"));
}

async function run(job, leasedAt) {
  const before = running.get(job.id);
  if (before?.job.fencing_token >= job.fencing_token) return;   // a copy
  if (before) lose(before);
  const attempt = { job, stop: new AbortController() };
  renewed(attempt, leasedAt);
  running.set(job.id, attempt);
  const item = { job_id: job.id, fencing_token: job.fencing_token };
  if (now() >= attempt.fenceAt) return finish(attempt, "released", item);   // too long on its way
  const timer = setTimeout(() => attempt.stop.abort("timeout"), 1000 * job.timeout_seconds);
  try {
    if (!Object.hasOwn(tasks, job.task)) throw { name: "UnknownTask", message: job.task };
    const result = await tasks[job.task](job.args, attempt.stop.signal);
    JSON.stringify(result);                   // what it can't tell fails this job, and no report
    finish(attempt, "succeeded", { ...item, result });
  } catch (error) {
    const why = attempt.stop.signal.reason;
    if (why === "drain") return finish(attempt, "released", item);
    const type = { timeout: "Timeout", cancelled: "Cancelled" }[why] ?? error?.name ?? "Error";
    const told = { type, message: String(error?.message ?? error), traceback: error?.stack };
    finish(attempt, "failed", { ...item, error: told, retryable: why !== "cancelled" });
  } finally { clearTimeout(timer); }
}

function renewed(attempt, sentAt) {
  attempt.renewAt = sentAt + attempt.job.lease_seconds / 3;
  attempt.fenceAt = sentAt + attempt.job.lease_seconds * (1 - LEASE_MARGIN);
}

function finish(attempt, kind, item) {        // a lost attempt is not ours to report any more
  if (running.get(attempt.job.id) === attempt && running.delete(attempt.job.id)) ended[kind].push(item);
}

function lose(attempt) { running.delete(attempt.job.id); attempt.stop.abort("lost"); }

async function renew() {
  for (const attempt of running.values()) if (now() >= attempt.fenceAt) lose(attempt);
  const due = [...running.values()].filter((attempt) => now() >= attempt.renewAt).slice(0, REPORT_MAX);
  if (!due.length) return;
  const items = due.map(({ job: { id, fencing_token } }) => ({ job_id: id, fencing_token }));
  const sentAt = now();
  const answer = await call("POST", `/v1/workers/${workerId}/report`, { running: items });
  const status = Object.fromEntries(answer.results.map((result) => [result.job_id, result.status]));
  for (const attempt of due) {
    const told = status[attempt.job.id];
    if (told === "ok") renewed(attempt, sentAt);
    else if (told === "stale") lose(attempt);
    else attempt.renewAt = sentAt + 1;        // moved: this scheduler may have it back
  }
  answer.cancel.forEach((id) => running.get(id)?.stop.abort("cancelled"));
}

let most = REPORT_MAX;
async function report() {
  const body = {};
  let left = most;
  for (const kind in ended) left -= (body[kind] = ended[kind].slice(0, left)).length;
  const count = most - left;
  if (!count) return;
  try {
    await call("POST", `/v1/workers/${workerId}/report`, body);
    most = REPORT_MAX;
  } catch (error) {
    if (![400, 413, 415, 422].includes(error.status)) throw error;
    most = Math.max(1, count >> 1);           // too long, or one spoils it: halve it until that is alone
    if (count > 1) return;
    console.error(`can't be reported: ${JSON.stringify(body).slice(0, 200)}: ${error.message}`);
  }
  for (const kind in ended) ended[kind].splice(0, body[kind].length);   // only now: committed
}

const busy = () => running.size || Object.values(ended).some((items) => items.length);
async function keepReporting() {
  for (; !draining || busy(); await pause(0.01)) await renew().then(report).catch(recover);
}
process.on("SIGTERM", () => { draining = true; polling.abort(); });
while (!workerId && !draining) await register().catch(recover);
const reporting = keepReporting();
while (!draining) await poll().catch((error) => draining || recover(error));
const late = setTimeout(() => running.forEach((a) => a.stop.abort("drain")), 1000 * GRACE_SECONDS);
const end = setTimeout(() => process.exit(1), 2000 * GRACE_SECONDS);   // what is left runs out of its lease
await reporting;
// Leaving gives back what an interrupted poll brought.
if (workerId) await call("DELETE", `/v1/workers/${workerId}`).catch(() => {});
clearTimeout(late);
clearTimeout(end);
