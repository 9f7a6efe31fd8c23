// What every system's program shares: the roles, a precise clock, the payload, the stamps.
//
// A program is started as `node system.mjs <role> [setting…]` and calls `play` with what it does
// in each role: `prepare` makes schema and queues and ends; `produce` answers commands on stdin
// with JSON lines on stdout; `work` stamps every run into a file until SIGTERM. The protocol and
// the format of the stamps are told in ../peer.py.
import { mkdirSync, openSync, readFileSync, writeSync } from 'node:fs'
import { createInterface } from 'node:readline'

export const url = process.env.PEER_URL

const PAYLOAD_BYTES = 83
const STAMP_BYTES = 24
const STAMPS_HELD_MAX = 8192
const STAMPS_HELD_MS = 40
const CLOCK_CHECK_MS = 1000
const CLOCK_ERROR_MS_MAX = 0.2

// CLOCK_REALTIME minus performance.now(), in ms. Date.now() tells whole milliseconds, so the moment
// it ticks is watched for; to see a tick late only makes the difference smaller, hence the greatest
// of several.
function offset() {
  let greatest = -Infinity
  for (let turn = 0; turn < 8; turn++) {
    const before = Date.now()
    let tick = before
    while (tick === before) tick = Date.now()
    greatest = Math.max(greatest, tick - performance.now())
  }
  return greatest
}

const ORIGIN_MS = offset()

/** Milliseconds since 1970 with microseconds behind the point. */
export const now = () => ORIGIN_MS + performance.now()

// Date.now() is the same clock cut to whole milliseconds: outside of that one means that it was set
// meanwhile. An error below 1 ms shows only in its share of the checks; there are many of them.
function checkClock() {
  const before = Date.now()
  const precise = now()
  const after = Date.now() + 1
  if (precise < before - CLOCK_ERROR_MS_MAX || precise > after + CLOCK_ERROR_MS_MAX)
    throw new Error(`the clock is off: ${precise} is not in ${before}..${after}`)
}

const PADS = Array.from({ length: PAYLOAD_BYTES }, (_, length) => 'x'.repeat(length))

/** A job as JSON of 83 bytes; `due` in epoch ms, 0 for now. */
function payload(n, due) {
  const bare = `{"n":${n},"due":${due},"pad":""}`
  return { n, due, pad: PADS[PAYLOAD_BYTES - bare.length] }
}

// mulberry32: the same due times in every run.
function uniform(seed) {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

// `lanes` loops side by side, each taking the next piece of work until there is none.
const together = (lanes, step) =>
  Promise.all(Array.from({ length: lanes }, async () => { while (await step()); }))

// All jobs made first, then sent in batches, `lanes` calls in flight.
async function bulk({ first, jobs }, { add, batch, lanes }, due) {
  const payloads = Array.from({ length: jobs }, (_, i) => payload(first + i, due()))
  let next = 0
  const firstMs = now()
  await together(lanes, async () => {
    if (next >= jobs) return false
    const from = next
    next += batch
    await add(payloads.slice(from, next))
    return true
  })
  return { jobs, first_ms: firstMs, last_ms: now() }
}

// One job per call for some seconds.
async function single({ first, seconds, in_flight }, { addOne }) {
  let jobs = 0
  const firstMs = now()
  const end = firstMs + seconds * 1000
  await together(in_flight, async () => {
    if (now() >= end) return false
    await addOne(payload(first + jobs++, 0))
    return true
  })
  return { jobs, first_ms: firstMs, last_ms: now() }
}

async function answer(command, system) {
  if (command.do === 'single') return single(command, system)
  if (command.do === 'bulk') return bulk(command, system, () => 0)
  if (command.do !== 'due') throw new Error(`unknown command ${command.do}`)
  const random = uniform(1)
  return bulk(command, system, () => Math.round(command.start_ms + random() * command.seconds * 1000))
}

const versionOf = name =>
  JSON.parse(readFileSync(new URL(`./node_modules/${name}/package.json`, import.meta.url))).version

const say = line => writeSync(1, JSON.stringify(line) + '\n')

async function produce(open, names) {
  const system = await open()
  const versions = Object.fromEntries(names.map(name => [name, versionOf(name)]))
  say({ ready: true, versions: { ...versions, node: process.versions.node } })
  for await (const line of createInterface({ input: process.stdin })) {
    say(await answer(JSON.parse(line), system))
    checkClock()
  }
  await system.close()
}

async function work(start) {
  const folder = process.env.PEER_STAMPS
  mkdirSync(folder, { recursive: true })
  const file = openSync(`${folder}/${process.pid}.stamps`, 'a')
  const held = Buffer.alloc(STAMPS_HELD_MAX * STAMP_BYTES)
  let used = 0
  const flush = () => {
    for (let from = 0; from < used;) from += writeSync(file, held, from, used - from)
    used = 0
  }
  const note = ({ n, due }) => {
    const started = now()
    if (used === held.length) flush()
    held.writeDoubleLE(n, used)
    held.writeDoubleLE(due, used + 8)
    held.writeDoubleLE(started, used + 16)
    used += STAMP_BYTES
  }
  setInterval(flush, STAMPS_HELD_MS)
  setInterval(checkClock, CLOCK_CHECK_MS)
  const stop = await start(note)
  await new Promise(resolve => process.once('SIGTERM', resolve))
  await stop()
  flush()
}

/**
 * Play the role named on the command line, then end the process; an error ends it with status 1.
 *
 * `prepare()`; `produce()` gives `{add(payloads), addOne(payload), batch, lanes, close()}`;
 * `work(note)` begins to run jobs, calls `note(payload)` first in each, and gives a function that
 * stops. `packages` are those whose versions count.
 */
export async function play({ packages, ...roles }) {
  const role = process.argv[2]
  if (role === 'prepare') await roles.prepare()
  else if (role === 'produce') await produce(roles.produce, packages)
  else if (role === 'work') await work(roles.work)
  else throw new Error(`unknown role ${role}`)
  process.exit(0)
}
