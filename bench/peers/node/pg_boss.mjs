// pg-boss with batches of a thousand: one handler call for each batch, not for each job.
import { PgBoss } from 'pg-boss'
import { play, url } from './frame.mjs'

const QUEUE = 'noop'

async function open(options) {
  const boss = new PgBoss({ connectionString: url, ...options })
  boss.on('error', console.error)
  return boss.start()
}

await play({
  packages: ['pg-boss', 'pg'],

  async prepare() {
    const boss = await open()
    await boss.createQueue(QUEUE)
    await boss.stop({ graceful: false })
  },

  async produce() {
    const boss = await open({ supervise: false, schedule: false })
    const job = data => ({ data, ...(data.due && { startAfter: new Date(data.due) }) })
    return {
      batch: 1000,
      lanes: 2,
      add: payloads => boss.insert(QUEUE, payloads.map(job)),
      addOne: data => boss.send(QUEUE, data),
      close: () => boss.stop({ graceful: false }),
    }
  },

  async work(note) {
    const boss = await open()
    const options = {
      batchSize: 1000,
      localConcurrency: 2,
      burstWhenBatchFull: true,
      pollingIntervalSeconds: 0.5,
    }
    await boss.work(QUEUE, options, async jobs => { for (const job of jobs) note(job.data) })
    return () => boss.stop({ timeout: 3000 })
  },
})
