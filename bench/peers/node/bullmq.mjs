// BullMQ on Redis: one worker process with a hundred jobs at a time, finished jobs removed.
import { Queue, Worker } from 'bullmq'
import { play, url } from './frame.mjs'

const QUEUE = 'noop'
const { hostname: host, port } = new URL(url)
const connection = { host, port: Number(port) }

await play({
  packages: ['bullmq', 'ioredis'],

  async produce() {
    const queue = new Queue(QUEUE, { connection, defaultJobOptions: { removeOnComplete: true } })
    await queue.waitUntilReady()
    return {
      batch: 1000,
      lanes: 2,
      add(payloads) {
        const timestamp = Date.now() // what a delay is counted from
        const job = data =>
          ({ name: 'noop', data, opts: data.due ? { timestamp, delay: data.due - timestamp } : {} })
        return queue.addBulk(payloads.map(job))
      },
      addOne: data => queue.add('noop', data),
      close: () => queue.close(),
    }
  },

  async work(note) {
    const worker = new Worker(QUEUE, async job => note(job.data), {
      connection: { ...connection, maxRetriesPerRequest: null },
      concurrency: 100,
      removeOnComplete: { count: 0 },
    })
    worker.on('error', console.error)
    await worker.waitUntilReady()
    return () => worker.close()
  },
})
